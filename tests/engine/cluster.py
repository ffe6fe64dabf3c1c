"""Commands whose tasks are run by workers, which are killed at random, next to the same commands on one machine.

A database is named by its path or its URL, as on a command line.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import orjson
from made_documents import made_text

COMMANDS = [
    ["ingest", "DB", "DOCUMENTS", "--source", "made"],
    ["dedup", "DB", "--near-duplicates"],
    ["embed", "DB"],
    ["index", "DB", "--factory", "IVF16,SQ8"],
    ["neighbours", "DB", "--list-ranges", "3", "--k", "4"],
    ["ingest", "DB", "MORE", "--source", "more"],
    ["embed", "DB"],
    ["index", "DB"],
    ["neighbours", "DB", "--repair"],
    ["filter", "DB", "--where", "doc_id < 'd2'", "--reason", "some"],
    ["compact", "DB", "--min-deleted", "1%"],
    ["purge", "DB", "--doc-ids", "IDS", "--yes"],
    ["neighbours", "DB", "--repair"],
    ["export", "DB", "OUT", "--to", "arrays"],
]
_MOST_TRIES = 40
_OTHER_CLOCK = Path(__file__).parents[1] / "other_clock"
_COMMAND_LINE = "from retrodb_cli.main import run; run()"
# Small tasks, which a command runs itself, are posted too.
_EVERY_TASK_IS_POSTED = """
from retrodb.engine.worker_engine import WorkerEngine
from retrodb_cli.main import run
WorkerEngine.here = lambda self: self
if __name__ == "__main__":
    run()
"""


class Cluster:
    """Workers of a database, and the commands that they work for."""

    def __init__(
        self, database: str, folder: Path, lease_s: float, seed: int = 0, clock_offsets_s: Sequence[int] = (0,)
    ) -> None:
        """
        Args:
            folder: of the log.
            clock_offsets_s: the clock of each worker and command differs by one of them from the clock of this machine.
        """
        self.database, self.random = database, random.Random(seed)
        self._lease, self._log = f"{lease_s:.0f}s", folder / "log"
        self._workers: list[subprocess.Popen[bytes]] = []
        self._clock_offsets_s = clock_offsets_s
        self.num_kills = 0

    @contextmanager
    def workers(self, count: int) -> Iterator[None]:
        """So many workers at any time."""
        try:
            for _ in range(count):
                self._start_worker()
            yield
        finally:
            for worker in self._workers:
                worker.kill()
                worker.wait()

    def run(self, command: Sequence[str], *, pause_s: float | None, kills_command: bool = False) -> None:
        """Run a command to its end, killing a worker after each pause, and now and then the command itself."""
        for _ in range(_MOST_TRIES):
            process = self._begin(command)
            while process.poll() is None:
                if pause_s is None:
                    process.wait()
                    break
                time.sleep(self.random.uniform(0.2, 1) * pause_s)
                if kills_command and self.random.random() < 0.1:
                    process.kill()
                    self.num_kills += 1
                else:
                    self._kill_a_worker()
            if process.wait() == 0:
                return
            assert process.returncode == -signal.SIGKILL, f"{command} ended with {process.returncode}: {self.log()}"
        raise AssertionError(f"{command[0]} does not end: {self.log()}")

    def log(self) -> str:
        """The end of what all processes printed."""
        return self._log.read_text(errors="replace")[-3000:]

    def _begin(self, command: Sequence[str]) -> subprocess.Popen[bytes]:
        program = [sys.executable, "-c", _EVERY_TASK_IS_POSTED, *command, "--engine", "workers", "--lease", self._lease]
        return self._start(program)

    def _start_worker(self) -> None:
        program = [sys.executable, "-c", _COMMAND_LINE, "work", self.database, "--workers", "1"]
        self._workers.append(self._start(program))

    def _start(self, program: list[str]) -> subprocess.Popen[bytes]:
        environment = {**os.environ, "CLOCK_OFFSET_S": str(self.random.choice(self._clock_offsets_s))}
        environment["PYTHONPATH"] = os.pathsep.join(
            [str(_OTHER_CLOCK), *environment.get("PYTHONPATH", "").split(os.pathsep)]
        )
        with self._log.open("ab") as log:
            return subprocess.Popen(program, env=environment, stdout=subprocess.DEVNULL, stderr=log)

    def _kill_a_worker(self) -> None:
        worker = self._workers.pop(self.random.randrange(len(self._workers)))
        worker.send_signal(self.random.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM]))
        worker.wait()
        self.num_kills += 1
        self._start_worker()


def write_inputs(folder: Path, num_documents: int) -> dict[str, str]:
    """Two files of documents, one of ids to purge, and the words of `COMMANDS` that stand for them."""
    for name, first in (("documents", 0), ("more", num_documents)):
        numbers = range(first, first + num_documents)
        lines = ({"id": f"d{n}", "text": made_text(n % (num_documents - 5), 60 + n % 90)} for n in numbers)
        (folder / f"{name}.jsonl").write_bytes(b"\n".join(map(orjson.dumps, lines)))
    ids = folder / "purged.txt"
    ids.write_text("d3\nd30\n")
    return {"DOCUMENTS": str(folder / "documents.jsonl"), "MORE": str(folder / "more.jsonl"), "IDS": str(ids)}


def create(database: str, tokenizer: Path) -> None:
    """An empty database."""
    _retrodb("init", database, "--tokenizer", str(tokenizer), "--encoder", "hashing:32")


def commands_of(database: str, inputs: dict[str, str], out: Path) -> Iterator[list[str]]:
    """`COMMANDS` for a database, and a folder for its export."""
    words = {**inputs, "DB": database, "OUT": str(out)}
    for command in COMMANDS:
        yield [words.get(word, word) for word in command]


def build_here(folder: Path, tokenizer: Path, inputs: dict[str, str]) -> dict[str, bytes]:
    """The answers of the same database when it is built on one machine."""
    database, out = str(folder / "here"), folder / "here-export"
    create(database, tokenizer)
    for command in commands_of(database, inputs, out):
        _retrodb(*command)
    return answers(database, out)


def build_there(
    cluster: Cluster,
    tokenizer: Path,
    inputs: dict[str, str],
    out: Path,
    *,
    workers: int,
    pause_s: float,
    kills_command: bool,
) -> dict[str, bytes]:
    """The answers of the same database when workers of a cluster build it."""
    create(cluster.database, tokenizer)
    with cluster.workers(workers):
        for command in commands_of(cluster.database, inputs, out):
            cluster.run(command, pause_s=pause_s, kills_command=kills_command)
    return answers(cluster.database, out)


def answers(database: str, out: Path) -> dict[str, bytes]:
    """What a database says and has exported, and that it is whole. Names of files may differ between databases."""
    documents = _retrodb("sql", database, "select doc_id, num_chunks, live from documents order by all", "--json")
    _retrodb("check", database, "--read-data")
    exported = {path.name: path.read_bytes() for path in sorted(out.rglob("*.npy"))}
    return {"documents": documents, **exported}


def _retrodb(*arguments: str) -> bytes:
    done = subprocess.run([sys.executable, "-c", _COMMAND_LINE, *arguments], capture_output=True, check=False)
    assert done.returncode == 0, (arguments, done.returncode, done.stderr.decode())
    return done.stdout
