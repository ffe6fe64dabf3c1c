"""Mapped files whose bytes are compared with digests when this process first touches them.

A reader declares the ranges that it is going to read. The blocks of a range that were not verified yet in this process are, and
the others cost nothing. What was verified is remembered by the file's identity, so that it does not matter how often, and by
which object, a file is opened.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import NoReturn

import numpy as np
import xxhash

from retrodb.errors import DamagedFileError, RetroDBError
from retrodb.format.arrays import BoolArray, Int64Array
from retrodb.format.blocks import DIGEST_BYTES, block_bytes, block_digests, block_range, num_blocks, root_digest

FILES_BY_BLOCK = 1024  # remembered by block; of a file of 1 GB, 16 KB
_WHOLE_FILES = 1 << 14  # remembered as verified or not, 0.4 KB each: a task of a join reads parts of thousands of files

ErrorOf = Callable[[str], RetroDBError]
"""Makes the error for a file in which this is wrong."""
ReadDigests = Callable[[], bytes]
"""Reads the digests of all blocks of a file, which it compares with the manifest; none where they are not there."""


class WholeMark:
    """Whether this process has verified every block of one file."""

    __slots__ = ("is_whole",)

    def __init__(self) -> None:
        self.is_whole = False


class VerifiedBlocks:
    """Which blocks of one file this process has verified. Threads may share it: to verify a block twice does no harm."""

    def __init__(self, size_bytes: int, whole: WholeMark) -> None:
        self.size_bytes = size_bytes
        self._whole = whole
        self.has_footer = False  # a Parquet file's is verified
        self._is_verified_B: BoolArray = np.zeros(num_blocks(size_bytes), dtype=bool)

    @property
    def is_whole(self) -> bool:
        """Whether every block is verified."""
        return self._whole.is_whole

    def verify_whole(self, digests: bytes, root: bytes, read_digests: ReadDigests, error_of: ErrorOf) -> None:
        """Verify all bytes of the file.

        Args:
            digests: of the blocks that the file has.
            root: of the blocks that it should have.
            read_digests: asked which block is damaged.

        Raises:
            RetroDBError: what `error_of` makes.
        """
        actual = root_digest(digests)
        if actual != root:
            expected = read_digests()
            for block in range(len(expected) // DIGEST_BYTES):
                if _digest(expected, block) != _digest(digests, block):
                    _refuse(block, self.size_bytes, error_of)
            raise error_of(f"checksum mismatch (expected {root.hex()[:12]}.., got {actual.hex()[:12]}..)")
        self._whole.is_whole = True

    def unverified_in(self, start: int, end: int) -> list[int]:
        """The blocks with a byte of one range, which is not empty, that were not verified yet."""
        first, last = start // block_bytes(), (end - 1) // block_bytes()
        return [block for block in range(first, last + 1) if not self._is_verified_B[block]]

    def unverified(self, starts_R: Int64Array, ends_R: Int64Array) -> list[int]:
        """The blocks with a byte of these ranges that were not verified yet."""
        if self.is_whole:
            return []
        is_any = ends_R > starts_R
        if not is_any.any():
            return []
        first_R, last_R = starts_R[is_any] // block_bytes(), (ends_R[is_any] - 1) // block_bytes()
        first, count = int(first_R.min()), int(last_R.max() - first_R.min()) + 1
        unverified_B = ~self._is_verified_B[first : first + count]
        if not unverified_B.any():
            return []
        begun_B = np.bincount(first_R - first, minlength=count + 1) - np.bincount(
            last_R + 1 - first, minlength=count + 1
        )
        touched_B: BoolArray = np.cumsum(begun_B)[:count] > 0
        blocks: list[int] = (first + np.flatnonzero(touched_B & unverified_B)).tolist()
        return blocks

    def verify_blocks(self, data: memoryview, blocks: list[int], digests: bytes, error_of: ErrorOf) -> None:
        """Verify some blocks by the digests of all. Raises as `verify_whole`."""
        for block in blocks:
            start, end = block_range(block, self.size_bytes)
            if xxhash.xxh3_64_digest(data[start:end]) != _digest(digests, block):
                _refuse(block, self.size_bytes, error_of)
            self._is_verified_B[block] = True
        if self._is_verified_B.all():
            self._whole.is_whole = True


def _digest(digests: bytes, block: int) -> bytes:
    return digests[block * DIGEST_BYTES : (block + 1) * DIGEST_BYTES]


def _refuse(block: int, size_bytes: int, error_of: ErrorOf) -> NoReturn:
    start, end = block_range(block, size_bytes)
    raise error_of(f"checksum mismatch in bytes {start:,} to {end - 1:,}")


@lru_cache(maxsize=FILES_BY_BLOCK)
def blocks_of(device: int, inode: int, size_bytes: int, mtime_ns: int, root: bytes) -> VerifiedBlocks:
    """What this process has verified of a file that should have this root digest."""
    return VerifiedBlocks(size_bytes, whole_mark(device, inode, size_bytes, mtime_ns, root))


@lru_cache(maxsize=_WHOLE_FILES)
def whole_mark(device: int, inode: int, size_bytes: int, mtime_ns: int, root: bytes) -> WholeMark:
    """Whether this process has verified all of such a file, which is remembered of more files than their blocks are."""
    del device, inode, size_bytes, mtime_ns, root  # the identity of the file
    return WholeMark()


class MappedBytes:
    """A mapped file that this process wrote: there is nothing to verify."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("rb") as file:
            is_empty = not os.fstat(file.fileno()).st_size
            self._mapped = b"" if is_empty else mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self.data = memoryview(self._mapped)

    @property
    def is_whole(self) -> bool:
        """Whether every byte is verified."""
        return True

    def declare(self, starts_R: Int64Array, ends_R: Int64Array) -> None:
        """Verify ranges of bytes `starts_R[i] .. ends_R[i]` before they are read.

        Raises:
            DamagedFileError: names the file and the damaged block.
        """

    def declare_one(self, start: int, end: int) -> None:
        """`declare` of one range that is not empty: many of them, in many files, are read faster without arrays."""

    def whole(self) -> memoryview:
        """All bytes, verified. Raises as `declare`."""
        return self.data

    def error_of(self, what: str) -> RetroDBError:
        """The error for this file when its verified bytes are not what they should be."""
        return DamagedFileError(what, where=str(self.path), remedy="Run 'retrodb check --read-data'.")

    def find(self, pattern: bytes, start: int = 0) -> int:
        """Where a pattern is next in bytes that are not verified, so that the caller has to; -1 if nowhere."""
        return self._mapped.find(pattern, start)

    def between(self, start: int, end: int) -> memoryview:
        """Some bytes, verified. Raises as `declare`."""
        self.declare(np.array([start]), np.array([end]))
        return self.data[start:end]


class VerifiedBytes(MappedBytes):
    """A mapped file of the database."""

    def __init__(
        self, path: Path, blocks: VerifiedBlocks, root: bytes, read_digests: ReadDigests, error_of: ErrorOf
    ) -> None:
        """
        Args:
            read_digests: of the blocks; without them, the first touch verifies the whole file.
        """
        super().__init__(path)
        self._blocks, self._root, self._read_digests, self._error_of = blocks, root, read_digests, error_of

    @property
    def is_whole(self) -> bool:
        return self._blocks.is_whole

    def declare(self, starts_R: Int64Array, ends_R: Int64Array) -> None:
        if unverified := self._blocks.unverified(starts_R, ends_R):
            self._verify(unverified)

    def declare_one(self, start: int, end: int) -> None:
        if not self.is_whole and (unverified := self._blocks.unverified_in(start, end)):
            self._verify(unverified)

    def _verify(self, unverified: list[int]) -> None:
        if digests := self._read_digests():
            self._blocks.verify_blocks(self.data, unverified, digests, self._error_of)
        else:
            self.whole()

    def whole(self) -> memoryview:
        if not self._blocks.is_whole:
            self._blocks.verify_whole(block_digests(self.data), self._root, self._read_digests, self._error_of)
        return self.data

    def error_of(self, what: str) -> RetroDBError:
        return self._error_of(what)
