"""Blocks of a file: each has a digest of its own, so that a reader verifies the bytes that it touches and no others."""

from __future__ import annotations

from typing import TypeAlias

import xxhash

BLOCK_BYTES = 1 << 16
"""Bytes of a block; the last block of a file may be shorter. `benchmarks/results/2026-11-27-verified-reads.md` has the reason."""
DIGEST_BYTES = 8
"""Bytes of a block's digest: its xxh3-64, big-endian."""

WHOLE_KINDS = frozenset({"settings", "tokenizer", "codebooks", "runs"})
"""Kinds of files without a file of block digests: a process verifies all bytes of each at its first touch, and once."""

Bytes: TypeAlias = bytes | memoryview


def num_blocks(size_bytes: int) -> int:
    """The number of blocks of a file."""
    return -(-size_bytes // BLOCK_BYTES)


def block_bytes() -> int:
    """`BLOCK_BYTES`, which tests make smaller."""
    return BLOCK_BYTES


def block_range(block: int, size_bytes: int) -> tuple[int, int]:
    """First byte and end of a block of a file."""
    return block * BLOCK_BYTES, min(size_bytes, (block + 1) * BLOCK_BYTES)


def block_digests(data: Bytes) -> bytes:
    """The digests of the blocks of these bytes, one after the other."""
    view = memoryview(data)
    starts = range(0, len(view), BLOCK_BYTES)
    return b"".join([xxhash.xxh3_64_digest(view[start : start + BLOCK_BYTES]) for start in starts])


def root_digest(digests: bytes) -> bytes:
    """The 16 bytes in the manifest that prove the digests of all blocks of a file: their xxh3-128."""
    return xxhash.xxh3_128_digest(digests)


def has_block_file(kind: str, size_bytes: int) -> bool:
    """Whether the digests of a file's blocks are stored: not where it has one block, or is read whole."""
    return size_bytes > BLOCK_BYTES and kind not in WHOLE_KINDS
