"""Sets of short facts that one machine keeps for its next process: a file of the user's cache folder, one fact a line.

Several processes append to a file. A process reads every line at most once. A file that cannot be read or written costs
time and never correctness, so a fact must stay true, or name all that it depends on.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

CACHE_VARIABLE = "RETRODB_CACHE_DIR"


class CachedLines:
    """The lines of one file, with those that this process adds."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._lines: set[str] = set()
        self._num_bytes = 0  # of the file that were read

    def __contains__(self, line: str) -> bool:
        if line not in self._lines:
            self._read_new_lines()
        return line in self._lines

    def add(self, lines: Iterable[str]) -> None:
        """Keep lines, also for other processes."""
        new = [line for line in lines if line not in self._lines]
        if not new:
            return
        self._lines.update(new)
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with self._file.open("a") as file:
                file.write("".join(f"{line}\n" for line in new))
        except OSError:
            return

    def _read_new_lines(self) -> None:
        try:
            size = self._file.stat().st_size
            if size == self._num_bytes:
                return
            with self._file.open("rb") as file:
                file.seek(self._num_bytes if size > self._num_bytes else 0)  # a shorter file is another one
                start, data = file.tell(), file.read()
        except OSError:
            return
        complete = data.rpartition(b"\n")[0]
        self._lines.update(complete.decode(errors="replace").split("\n"))
        self._num_bytes = start + len(complete) + (b"\n" in data)


def cached_lines(name: str) -> CachedLines:
    """The lines of a file of the cache folder, which the whole process shares."""
    return _shared(cache_folder() / name)


def cache_folder() -> Path:
    """The user's cache folder of retrodb; `RETRODB_CACHE_DIR` moves it."""
    if CACHE_VARIABLE in os.environ:
        return Path(os.environ[CACHE_VARIABLE])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "retrodb"


@lru_cache(maxsize=8)
def _shared(file: Path) -> CachedLines:
    return CachedLines(file)
