"""What a task costs in addition when workers or a Ray cluster run it, and how much faster two processes are than one.

    python benchmarks/bench_workers.py                  # a minute
    python benchmarks/bench_workers.py --documents 4000
    python benchmarks/bench_workers.py --engine ray

The first table has tasks that do nothing: the time of a process for each is what claims, signs, records and logs cost. The second
runs commands on a made-up database, with one and with two processes: workers of one process each, or a Ray cluster with so many
CPUs. Workers and cluster are there before the command starts; the processes of a Ray cluster start with each command.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))  # the makers of documents are the tests' too

from empty_task import NOTHING, Number, run_nothing
from made_documents import made_text, write_documents

import retrodb
from retrodb.bench.machine import environment
from retrodb.corpus.train_tokenizer import train_byte_bpe
from retrodb.engine.progress import Progress
from retrodb.engine.ray_engine import RayEngine
from retrodb.engine.run import Engine, open_run
from retrodb.engine.worker import Worker, WorkerOptions
from retrodb.engine.worker_engine import WorkerEngine
from retrodb.store.storage import LocalStorage

_COMMAND_LINE = "from retrodb_cli.main import run; run()"
_TASKS = 500


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=2000, help="of 1,600 words, about 80 chunks each")
    parser.add_argument("--engine", choices=["workers", "ray"], default="workers")
    options = parser.parse_args()
    print(", ".join(f"{name} {value}" for name, value in environment(1).items()))
    with tempfile.TemporaryDirectory() as folder:
        cost_s = (_cost_on_ray if options.engine == "ray" else _cost_of_a_worker)(
            LocalStorage(Path(folder) / "nothing")
        )
        print(f"\n{_TASKS} tasks that do nothing, one process: {1e3 * cost_s:.1f} ms for each task\n")
        print("| command | one process | two processes | speed-up |")
        print("|---|---|---|---|")
        for row in speed_ups(Path(folder), options.documents, options.engine):
            print(row, flush=True)


def _cost_of_a_worker(storage: LocalStorage) -> float:
    """Seconds that a worker takes for a task that does nothing."""
    program = [sys.executable, __file__, "--work", str(storage.root)]
    with subprocess.Popen(program) as worker:
        cost_s = _cost_of_a_task(storage, WorkerEngine())
        worker.terminate()
    return cost_s


def _cost_on_ray(storage: LocalStorage) -> float:
    """Seconds that a process of a Ray cluster takes for a task that does nothing."""
    engine = RayEngine(libraries=("empty_task",))
    with _ray_cluster(1), engine.running("nothing"):
        return _cost_of_a_task(storage, engine)


def _cost_of_a_task(storage: LocalStorage, engine: Engine) -> float:
    run = open_run(storage, "nothing", {})
    tasks = [NOTHING.task(Number(number)) for number in range(_TASKS)]
    engine.run(run, tasks[:1], run_nothing, Progress())  # the process of the tasks has started
    started = time.perf_counter()
    engine.run(run, tasks, run_nothing, Progress())
    return (time.perf_counter() - started) / len(tasks)


def work(folder: str) -> None:
    """A worker of these tasks."""
    Worker(LocalStorage(folder), WorkerOptions(libraries=("empty_task",))).run()


def speed_ups(folder: Path, num_documents: int, engine: str) -> Iterator[str]:
    """The rows of the second table."""
    tokenizer, documents = folder / "tokenizer.json", folder / "documents.jsonl"
    train_byte_bpe([made_text(seed, 200) for seed in range(20)], 400).save(tokenizer)
    write_documents(documents, {f"d{number}": made_text(number, 1600) for number in range(num_documents)})
    for count in (1, 2):
        retrodb.create(folder / f"db-{count}", tokenizer=str(tokenizer), encoder="hashing:64")
        database = retrodb.open(folder / f"db-{count}")
        for first in range(8):  # shards
            part = {f"d{number}": made_text(number, 1600) for number in range(first, num_documents, 8)}
            database.ingest([write_documents(documents, part)], source=f"made-{first}")
    commands = (["dedup", "--near-duplicates"], ["embed"], ["index"], ["neighbours", "--list-ranges", "8"])
    for command in commands:
        times = [_elapsed_s(folder / f"db-{count}", command, count, engine) for count in (1, 2)]
        yield f"| {' '.join(command)} | {times[0]:.1f} s | {times[1]:.1f} s | {times[0] / times[1]:.2f} |"


def _elapsed_s(database: Path, command: Sequence[str], count: int, engine: str) -> float:
    with _ray_cluster(count) if engine == "ray" else _workers(database, count):
        time.sleep(3)  # they are there
        started = time.perf_counter()
        program = [sys.executable, "-c", _COMMAND_LINE, command[0], str(database), *command[1:], "--engine", engine]
        subprocess.run(program, check=True, capture_output=True)
        return time.perf_counter() - started


@contextmanager
def _ray_cluster(num_cpus: int) -> Iterator[None]:
    """A cluster with so many CPUs, which commands find by the environment."""
    import ray

    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)  # of its processes
    ray.init(
        address="local", num_cpus=num_cpus, object_store_memory=80 << 20, include_dashboard=False, log_to_driver=False
    )
    os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address
    try:
        yield
    finally:
        del os.environ["RAY_ADDRESS"]
        ray.shutdown()


@contextmanager
def _workers(database: Path, count: int) -> Iterator[None]:
    program = [sys.executable, "-c", _COMMAND_LINE, "work", str(database), "--workers", "1"]
    workers = [subprocess.Popen(program, stdout=subprocess.DEVNULL) for _ in range(count)]
    try:
        yield
    finally:
        for worker in workers:
            worker.terminate()
            worker.wait()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--work"]:
        work(sys.argv[2])
    else:
        main()
