"""Row bitmaps in the column `rows` of Parquet files with small row groups, read a row group at a time."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from retrodb.format.parquet import read_row_groups
from retrodb.store.bounded_cache import CachedReader


class BitmapGroups:
    """The bitmaps of some files. What is read stays in the cache of the process, with the other bitmaps of its row group."""

    def __init__(self, files: Sequence[Path], group_rows: int) -> None:
        """
        Args:
            group_rows: rows of each row group but the last. A group is in memory as a whole, so they are few.
        """
        self._group_rows = group_rows
        self._group = CachedReader(partial(_read_group, files), lambda rows: sum(map(len, rows)))

    def bitmap(self, file: int, row: int) -> bytes:
        """The serialised bitmap in a row of a file, which is named by its number. Raises DamagedFileError."""
        return self._group(file, row // self._group_rows)[row % self._group_rows]


def _read_group(files: Sequence[Path], file: int, group: int) -> list[bytes]:
    bitmaps: list[bytes] = read_row_groups(files[file], [group], ["rows"]).column("rows").to_pylist()
    return bitmaps
