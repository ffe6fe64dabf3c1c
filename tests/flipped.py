"""One bit of a file flipped, with nothing that shows it in the file's metadata."""

from __future__ import annotations

import os
from pathlib import Path

from retrodb.store.verified_bytes import blocks_of, whole_mark


def flip_bit(path: Path, position: int, bit: int = 0) -> None:
    """Flip a bit of the byte at a position; size, inode and times stay."""
    stat = path.stat()
    with path.open("r+b") as file:
        file.seek(position)
        [byte] = file.read(1)
        file.seek(position)
        file.write(bytes([byte ^ 1 << bit]))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def forget_verified() -> None:
    """Verify every file again, as another process does."""
    blocks_of.cache_clear()
    whole_mark.cache_clear()
