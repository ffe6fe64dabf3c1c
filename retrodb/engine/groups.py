"""Cutting work into tasks: neighbouring items together, until they are as much work as a task should be."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def groups_of(items: Iterable[T], weight: Callable[[T], int], most: int) -> Iterator[tuple[T, ...]]:
    """Groups of items in their order. The weights of a group add up to `most` at the most, unless it is one item alone."""
    group: list[T] = []
    total = 0
    for item in items:
        if group and total + weight(item) > most:
            yield tuple(group)
            group, total = [], 0
        group.append(item)
        total += weight(item)
    if group:
        yield tuple(group)
