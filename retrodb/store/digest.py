"""Digests of bytes and files, and identities of work."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import orjson
import xxhash

from retrodb.format.records import FileDigest

_BLOCK = 1 << 22


def digest_bytes(data: bytes) -> FileDigest:
    """The digest of a file that holds these bytes."""
    return FileDigest(len(data), hashlib.sha256(data).digest(), xxhash.xxh3_128_digest(data))


def digest_file(path: Path) -> FileDigest:
    """Size, SHA-256 and xxh3-128 of a file in one pass."""
    sha256, xxh3, size = hashlib.sha256(), xxhash.xxh3_128(), 0
    for block in _blocks(path):
        sha256.update(block)
        xxh3.update(block)
        size += len(block)
    return FileDigest(size, sha256.digest(), xxh3.digest())


def xxh3_file(path: Path) -> bytes:
    """The 16 bytes of a file's xxh3-128."""
    xxh3 = xxhash.xxh3_128()
    for block in _blocks(path):
        xxh3.update(block)
    return xxh3.digest()


def identity(*parts: object) -> str:
    """A name for work: 32 hexadecimal digits that depend on nothing but these plain values."""
    data = orjson.dumps(parts, option=orjson.OPT_SORT_KEYS | orjson.OPT_SERIALIZE_NUMPY)
    return hashlib.sha256(data).hexdigest()[:32]


def _blocks(path: Path) -> Iterator[bytes]:
    with path.open("rb", buffering=0) as file:
        while block := file.read(_BLOCK):
            yield block
