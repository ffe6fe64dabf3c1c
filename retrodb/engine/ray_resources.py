"""How many processes a Ray cluster has room for, and what each of them is given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from retrodb.memory import MIB, size_text

RAY_BYTES = 45 * MIB
"""What Ray takes in each process that it starts or that is connected to it: 40 MiB of anonymous memory in Ray 2.60."""
OWN_CLUSTER_BYTES = 350 * MIB
"""What the other processes of a cluster on one machine take: 300 MiB in Ray 2.60, a spare process for tasks included."""


@dataclass(frozen=True)
class NodeResources:
    """What a node of the cluster has, used or not."""

    cpus: int
    gpus: int
    memory_bytes: int


@dataclass(frozen=True)
class ProcessNeed:
    """The least that a process needs for some tasks."""

    memory_bytes: int
    gpus: int = 0

    def __str__(self) -> str:
        gpu = ", a GPU" if self.gpus else ""
        return f"a CPU{gpu} and {size_text(self.memory_bytes)} of memory"


@dataclass(frozen=True)
class ProcessSize:
    """What a process is given. Ray puts no more of them on a node than it has room for."""

    cpus: int
    gpus: int
    memory_bytes: int

    def has_room(self, need: ProcessNeed) -> bool:
        """Whether a process of this size can run the tasks."""
        return need.gpus == self.gpus and need.memory_bytes <= self.memory_bytes

    def half(self, need: ProcessNeed) -> ProcessSize:
        """Half of the CPUs and the memory, but no less than is needed."""
        return ProcessSize(max(1, self.cpus // 2), self.gpus, max(need.memory_bytes, self.memory_bytes // 2))


def size_for(nodes: Sequence[NodeResources], need: ProcessNeed, num_tasks: int) -> ProcessSize:
    """The size of the processes for some tasks: no CPU is idle where tasks are few, and no memory where CPUs are.

    Without a node that has room, it is the least.
    """
    least = ProcessSize(1, need.gpus, need.memory_bytes)
    wanted = min(num_tasks, num_places(nodes, least))
    if wanted == 0:
        return least
    by_cpus = (ProcessSize(cpus, need.gpus, need.memory_bytes) for cpus in range(_most_cpus(nodes, least), 0, -1))
    size = next(size for size in by_cpus if num_places(nodes, size) >= wanted)
    fractions = [node.memory_bytes // _places(node, size) for node in nodes if _places(node, size)]
    return ProcessSize(size.cpus, size.gpus, min(fractions))


def num_places(nodes: Sequence[NodeResources], size: ProcessSize) -> int:
    """How many processes of a size the nodes have room for."""
    return sum(_places(node, size) for node in nodes)


def _places(node: NodeResources, size: ProcessSize) -> int:
    places = min(node.cpus // size.cpus, node.memory_bytes // max(1, size.memory_bytes))
    return min(places, node.gpus // size.gpus) if size.gpus else places


def _most_cpus(nodes: Sequence[NodeResources], size: ProcessSize) -> int:
    return max(node.cpus for node in nodes if _places(node, size))
