"""What the tasks of a training leave for each other in the run's folder: a payload names a list of files, not the files.

The sample is one sequence of vectors, whichever files hold it. A split sorts each of its pieces by group into one file of
vectors, with the offsets of the groups in another. So there are few files, whatever the number of groups.

Legend: S sample, D dimensions, G groups, F files, L lists.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import accumulate
from pathlib import Path
from typing import TypeVar

import numpy as np

from retrodb.engine.run import Run
from retrodb.format.arrays import AnyArray, Float16Array, Int32Array, Int64Array, map_array, save_array
from retrodb.format.json_codec import from_json, to_json
from retrodb.format.kinds import path_of
from retrodb.format.records import FileRecord
from retrodb.store.publish import publish
from retrodb.store.storage import Storage
from retrodb.store.verified_array import VerifiedArray
from retrodb.store.verify import VerifiedFiles

_BLOCK_ROWS = 16_384  # read at once: 16,384 * 384 dimensions * 4 bytes (float32) = 25 MB

T = TypeVar("T")


@dataclass(frozen=True)
class SampleFiles:
    """Files of a sample, in their order."""

    files: tuple[FileRecord, ...]
    rows: tuple[int, ...]  # of each file


@dataclass(frozen=True)
class SplitFiles:
    """What the tasks of a split wrote, in the order of the pieces of the sample."""

    vectors: tuple[FileRecord, ...]  # (n, D) float16, by group, then by row
    offsets: tuple[FileRecord, ...]  # (G + 1,) int64 each
    lists: tuple[FileRecord, ...]  # (n,) int32: the nearest list of each vector; none where there are no lists yet


@dataclass(frozen=True)
class ListFiles:
    """The lists of all groups."""

    lists: tuple[int, ...]  # of each group
    centroids: tuple[FileRecord, ...]  # (n, D) float32 of the lists of some groups, one file after another
    groups: tuple[FileRecord, ...] = ()  # (n, D) float32 of the groups that have lists, after the last refinement


def training_path(run: str, name: str) -> str:
    """The path of a file of a training."""
    return path_of("runs", run=run, file=f"training/{name}")


def publish_training_array(storage: Storage, run: str, name: str, array: AnyArray) -> FileRecord:
    """Publish `{name}.npy` in the run's folder."""
    return publish(storage, "runs", training_path(run, f"{name}.npy"), partial(save_array, array=array))


def publish_training_list(storage: Storage, run: str, name: str, files: object) -> FileRecord:
    """Publish a list of files, a dataclass, in the run's folder."""

    def write(local: Path) -> None:
        local.write_bytes(to_json(files))

    return publish(storage, "runs", training_path(run, f"{name}.json"), write)


def read_training_list(files: VerifiedFiles, kind: type[T], record: FileRecord) -> T:
    """Read what `publish_training_list` wrote. Raises MissingFileError, DamagedFileError."""
    return from_json(kind, files.open(record).read_bytes(), where=record.path)


def delete_training_files(run: Run) -> None:
    """Delete what only the tasks of a training needed. If this is interrupted, garbage collection does it."""
    folder = training_path(run.id, "x").rpartition("/")[0]
    for path in sorted(run.storage.list(folder)):
        run.storage.delete(path)
    run.storage.remove_empty_folders(folder)


class StoredSample:
    """A sample in files: it is read by row numbers, and only what is asked for is in memory."""

    def __init__(self, files: VerifiedFiles, sample: SampleFiles) -> None:
        self._files, self._records = files, sample.files
        self._starts = np.array(list(accumulate(sample.rows, initial=0)), dtype=np.int64)

    @property
    def shape(self) -> tuple[int, int]:
        """(S, D)."""
        return len(self), int(self._array(0).shape[1])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, rows_S: Int64Array) -> Float16Array:
        """The vectors of ascending rows."""
        bounds = np.searchsorted(rows_S, self._starts)
        vectors_SD: Float16Array = np.empty((len(rows_S), self.shape[1]), dtype=np.float16)
        for file, (first, stop) in enumerate(zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True)):
            if stop > first:
                vectors_SD[first:stop] = self._array(file)[rows_S[first:stop] - self._starts[file]]
        return vectors_SD

    def _array(self, file: int) -> VerifiedArray:
        return self._files.array(self._records[file])


class SplitSample:
    """The vectors of some groups, in the order of the sample, gathered from the files of a split.

    A task reads a few ranges of many files, so it maps them as they are: to verify them would be to read the whole sample.
    """

    def __init__(self, files: VerifiedFiles, split: SplitFiles, first: int, stop: int) -> None:
        """
        Args:
            first, stop: the range of groups that are read.
        """
        self._storage, self._split, self._first = files.storage, split, first
        offsets = [files.array(record)[first : stop + 1] for record in split.offsets]
        self._offsets_FG: Int64Array = np.stack(offsets).astype(np.int64)

    def size(self, group: int) -> int:
        """Vectors of a group."""
        starts_F, stops_F = self._bounds(group)
        return int((stops_F - starts_F).sum())

    def vectors(self, group: int, positions_S: Int64Array) -> Float16Array:
        """The vectors of a group at ascending positions among its own."""
        starts_F, stops_F = self._bounds(group)
        ends_F = np.cumsum(stops_F - starts_F)
        bounds_F = np.searchsorted(positions_S, ends_F)
        blocks = [np.empty((0, self._vectors[0].shape[1]), np.float16)]
        first = 0
        for file, stop in enumerate(bounds_F.tolist()):
            if stop > first:
                blocks.append(self._vectors[file][positions_S[first:stop] - ends_F[file] + stops_F[file]])
            first = stop
        return np.concatenate(blocks)

    def blocks(self, group: int) -> Iterator[tuple[Float16Array, Int32Array]]:
        """All vectors of a group and the lists that they are nearest to, block by block."""
        for file, bounds in enumerate(zip(*self._bounds(group), strict=True)):
            for start in range(int(bounds[0]), int(bounds[1]), _BLOCK_ROWS):
                rows = slice(start, min(start + _BLOCK_ROWS, int(bounds[1])))
                yield self._vectors[file][rows], self._lists[file][rows]

    def _bounds(self, group: int) -> tuple[Int64Array, Int64Array]:
        return self._offsets_FG[:, group - self._first], self._offsets_FG[:, group - self._first + 1]

    @cached_property
    def _vectors(self) -> list[AnyArray]:
        return [map_array(self._storage.local(record.path)) for record in self._split.vectors]

    @cached_property
    def _lists(self) -> list[AnyArray]:
        return [map_array(self._storage.local(record.path)) for record in self._split.lists]
