"""Writing one file outside of a database so that it is whole or absent: exports, checkpoints, metrics."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path


def write_whole(path: Path, data: bytes) -> None:
    """Write a small file by a rename, so that a reader finds all of the old content or all of the new."""
    write_whole_with(path, lambda temporary: temporary.write_bytes(data))


def write_whole_with(path: Path, write: Callable[[Path], object]) -> None:
    """The same for a file that `write(temporary path)` makes. The temporary name begins with a dot and ends in `.partial`."""
    temporary = path.with_name(f".{path.name}.partial")
    write(temporary)
    publish_whole(temporary, path)


def publish_whole(temporary: Path, path: Path) -> None:
    """Give a finished file its name, after its bytes are on the disk."""
    sync_file(temporary)
    os.replace(temporary, path)


def sync_file(path: Path) -> None:
    """Wait until the bytes of a file are on the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
