"""A seeded sample of the rows of many files, drawn by file: the planner has two numbers for each file, and never all rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Generic, Protocol, TypeVar

import numpy as np

from retrodb.engine.groups import groups_of
from retrodb.engine.task import NoResult, Task, TaskKind
from retrodb.format.arrays import Int64Array

TASK_ROWS = 1 << 17  # drawn by one task: 131,072 * 384 dimensions * 2 bytes (float16) = 100 MB, or 40 MB of text
_MIN_FILE_ROWS = 1 << 8  # what a file counts at least, so that a task reads at most 512 files


class RowsOfFile(Protocol):
    """Rows of one file, whose number is known before they are."""

    @property
    def num_rows(self) -> int: ...


F = TypeVar("F", bound=RowsOfFile)


@dataclass(frozen=True)
class DrawnFrom(Generic[F]):
    """Rows to draw from, and how many are drawn."""

    rows: F
    size: int


@dataclass(frozen=True)
class SamplePayload(Generic[F]):
    """Copy what was drawn from some files."""

    run: str  # id of the run that stores it
    space: str
    files: tuple[DrawnFrom[F], ...]
    seed: int


def draw_from(parts: Sequence[F], size: int, seed: int) -> list[DrawnFrom[F]]:
    """The files that a sample has rows of. Arguments are as in `sample_sizes`."""
    sizes = sample_sizes([part.num_rows for part in parts], size, seed)
    return [DrawnFrom(part, of_file) for part, of_file in zip(parts, sizes, strict=True) if of_file]


def sample_tasks(
    kind: TaskKind[SamplePayload[F], NoResult], run: str, space: str, parts: Sequence[F], size: int, seed: int
) -> list[Task[SamplePayload[F], NoResult]]:
    """The tasks that copy a sample, in the order of the files. Arguments are those of the payload and of `draw_from`."""
    groups = groups_of(draw_from(parts, size, seed), lambda file: max(file.size, _MIN_FILE_ROWS), TASK_ROWS)
    return [
        kind.task(SamplePayload(run, space, group, seed), weight=sum(file.size for file in group)) for group in groups
    ]


def sample_sizes(num_rows: Sequence[int], size: int, seed: int) -> list[int]:
    """How many rows a sample takes from each file: every row of all files has the same chance.

    This is systematic sampling with a random start: the sizes add up to `size`, or to all rows where there are fewer, and each
    differs by less than one from its exact proportion.

    Args:
        num_rows: of each file.
        size: of the sample.
    """
    total = sum(num_rows)
    if not total:
        return [0] * len(num_rows)
    size = min(size, total)
    start = int(np.random.default_rng(seed).integers(total))
    taken = [(end * size + start) // total for end in accumulate(num_rows, initial=0)]
    return [after - before for before, after in pairwise(taken)]


def drawn_positions(num_rows: int, size: int, seed: int, first_chunk: int) -> Int64Array:
    """(size,) int64, ascending: the positions of the drawn rows among all rows of a file.

    Args:
        first_chunk: of the file, so that equally long files do not have the same positions drawn.
    """
    if size == num_rows:
        return np.arange(num_rows, dtype=np.int64)
    drawn = np.random.default_rng([seed, first_chunk]).choice(num_rows, size, replace=False)
    return np.sort(drawn).astype(np.int64)
