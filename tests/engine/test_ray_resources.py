"""The processes that a Ray cluster has room for leave no CPU idle, and no memory next to a busy CPU."""

from __future__ import annotations

import pytest

from retrodb.engine.ray_resources import NodeResources, ProcessNeed, ProcessSize, num_places, size_for

GIB = 1 << 30
NEED = ProcessNeed(GIB)


@pytest.mark.parametrize(
    ("nodes", "num_tasks", "expected"),
    [
        ([(8, 0, 16)], 100, ProcessSize(1, 0, 2 * GIB)),  # a process for each CPU, and all of the memory
        ([(8, 0, 16)], 2, ProcessSize(4, 0, 8 * GIB)),  # few tasks have more threads
        ([(8, 0, 16)], 3, ProcessSize(2, 0, 4 * GIB)),
        ([(64, 0, 4)], 100, ProcessSize(16, 0, GIB)),  # the memory is for four
        ([(8, 0, 16), (8, 0, 8)], 100, ProcessSize(1, 0, GIB)),
        ([(4, 0, 8), (2, 0, 0)], 100, ProcessSize(1, 0, 2 * GIB)),  # a node without memory takes none
        ([(0, 0, 0), (2, 0, 8)], 1, ProcessSize(2, 0, 8 * GIB)),  # a head that runs no tasks
        ([], 5, ProcessSize(1, 0, GIB)),
        ([(8, 0, 0)], 5, ProcessSize(1, 0, GIB)),
    ],
)
def test_processes_fill_the_nodes(nodes: list[tuple[int, int, int]], num_tasks: int, expected: ProcessSize) -> None:
    has = [NodeResources(cpus, gpus, memory * GIB) for cpus, gpus, memory in nodes]
    size = size_for(has, NEED, num_tasks)
    assert size == expected
    assert num_places(has, size) >= min(num_tasks, num_places(has, ProcessSize(1, 0, GIB)))


def test_tasks_that_take_a_gpu_have_one_each() -> None:
    nodes = [NodeResources(16, 2, 64 * GIB), NodeResources(64, 0, 64 * GIB)]
    size = size_for(nodes, ProcessNeed(GIB, gpus=1), 100)
    assert size == ProcessSize(8, 1, 32 * GIB)
    assert num_places(nodes, size) == 2


def test_processes_run_later_tasks_that_need_no_more() -> None:
    size = ProcessSize(2, 0, 2 * GIB)
    assert size.has_room(NEED)
    assert not size.has_room(ProcessNeed(3 * GIB))
    assert not size.has_room(ProcessNeed(GIB, gpus=1))
