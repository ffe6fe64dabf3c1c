"""Which worker ran how many tasks, and for how long."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class WorkerTally:
    """What one worker, or one machine, has done."""

    num_tasks: int = 0
    elapsed_s: float = 0.0  # of the tasks, added up

    def __add__(self, other: WorkerTally) -> WorkerTally:
        return WorkerTally(self.num_tasks + other.num_tasks, self.elapsed_s + other.elapsed_s)


def worker_name(machine: str, process: int, number: str) -> str:
    """The name of a worker, which no other one has."""
    return f"{machine}-{process}-{number}"


def by_machine(tallies: Mapping[str, WorkerTally]) -> dict[str, WorkerTally]:
    """The tallies of workers, by name, as those of their machines."""
    machines: dict[str, WorkerTally] = {}
    for worker, tally in tallies.items():
        machine = worker.rsplit("-", 2)[0]
        machines[machine] = machines.get(machine, WorkerTally()) + tally
    return machines
