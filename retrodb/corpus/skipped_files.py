"""Binary files of an unknown format, such as pictures, that lie among the files of folders, globs and archives."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class SkippedFiles:
    """How many were skipped, and which kinds."""

    num_files: int
    num_by_suffix: Mapping[str, int]  # ".png": 12; "" for names without a suffix
    first: str  # path of the first

    def __str__(self) -> str:
        kinds = ", ".join(f"{count:,} {suffix or 'without a suffix'}" for suffix, count in self.num_by_suffix.items())
        files = "1 file that is" if self.num_files == 1 else f"{self.num_files:,} files that are"
        return f"Skipped {files} not text ({kinds}). The first is {self.first}."


def count_skipped(paths: Sequence[str]) -> SkippedFiles | None:
    """The count of some paths; None without any."""
    if not paths:
        return None
    suffixes = Counter(os.path.splitext(path)[1].lower() for path in paths)
    return SkippedFiles(len(paths), dict(suffixes.most_common()), paths[0])


def add_skipped(counts: Iterable[SkippedFiles | None]) -> SkippedFiles | None:
    """The sum of some counts; None if nothing was skipped."""
    parts = [part for part in counts if part is not None]
    if not parts:
        return None
    suffixes = Counter[str]()
    for part in parts:
        suffixes.update(part.num_by_suffix)
    return SkippedFiles(sum(part.num_files for part in parts), dict(suffixes.most_common()), parts[0].first)
