"""A Ray cluster of several nodes on this machine, and commands during which nodes die and join."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import orjson
from ray._private.node import Node
from ray.cluster_utils import Cluster

_NODES = 3
_CPUS, _MEMORY_BYTES, _OBJECT_STORE_BYTES = 1, 2 << 30, 80 << 20  # of each
# Small tasks, which a command runs itself, go to the cluster too.
EVERY_TASK_ON_RAY = """
import sys
from retrodb.engine.ray_engine import RayEngine
from retrodb_cli.main import main
RayEngine.here = lambda self: self
if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
"""


class RayNodes:
    """Three nodes, next to a head that runs no tasks."""

    def __init__(self, database: Path) -> None:
        self._database, self._log = database, database.parent / "log"
        self._cluster = Cluster(initialize_head=True, head_node_args=_size(cpus=0))
        self._nodes = [self._add() for _ in range(_NODES)]
        self.num_kills = self.num_lost = 0  # nodes, and tasks that they had

    @staticmethod
    @contextmanager
    def of(database: Path) -> Iterator[RayNodes]:
        """A cluster that ends with the block."""
        nodes = RayNodes(database)
        try:
            yield nodes
        finally:
            nodes._cluster.shutdown()

    def run(self, command: Sequence[str]) -> None:
        """Run a command to its end. A node on which one of its tasks runs dies, and another joins."""
        seen, has_lost = self.attempts(), False
        process = self._begin(command)
        while process.poll() is None:
            time.sleep(0.001)
            new = self.attempts() - seen
            if new and not has_lost:
                seen |= new
                has_lost = self._lose(new.pop())
        assert process.returncode == 0, self.log()

    @property
    def address(self) -> str:
        """The address of the cluster."""
        return self._cluster.address

    def attempts(self) -> set[Path]:
        """The files of all attempts at tasks of open runs."""
        return set(self._database.glob("runs/*/attempts/*"))

    def cut_off(self, attempt: Path) -> None:
        """Stop what connects the node of an attempt with the cluster; the process of the attempt goes on."""
        os.kill(_parent_of(_process_of(attempt)), signal.SIGSTOP)

    def log(self) -> str:
        """The end of what all commands printed."""
        return self._log.read_text(errors="replace")[-3000:]

    def _begin(self, command: Sequence[str]) -> subprocess.Popen[bytes]:
        options = ["--engine", "ray", "--ray-address", self.address]
        with self._log.open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-c", EVERY_TASK_ON_RAY, *command, *options], stdout=subprocess.DEVNULL, stderr=log
            )

    def _lose(self, attempt: Path) -> bool:
        """Kill the node of an attempt, with all its processes at once, and add one. Whether the task had not ended."""
        try:
            process = _process_of(attempt)
            os.kill(process, signal.SIGSTOP)
            parent = _parent_of(process)
        except (OSError, orjson.JSONDecodeError):  # it has ended
            return False
        is_lost = not (attempt.parent.parent / "tasks" / f"{attempt.stem.rpartition('-')[0]}.json").exists()
        for node in list(self._nodes):
            if node.all_processes["raylet"][0].process.pid == parent:
                self._nodes.remove(node)
                self._cluster.remove_node(node, allow_graceful=False)
                self._nodes.append(self._add())
                self.num_kills += 1
                self.num_lost += is_lost
        return is_lost

    def _add(self) -> Node:
        return self._cluster.add_node(**_size(_CPUS))


def _process_of(attempt: Path) -> int:
    return int(orjson.loads(attempt.read_bytes())["worker"].split("-")[-2])  # machine, process and engine


def _parent_of(process: int) -> int:
    return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])


def _size(cpus: int) -> dict[str, int]:
    return {"num_cpus": cpus, "memory": _MEMORY_BYTES, "object_store_memory": _OBJECT_STORE_BYTES}
