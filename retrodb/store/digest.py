"""Digests of bytes and files, and identities of work."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import orjson
import xxhash

from retrodb.format.blocks import block_digests, root_digest
from retrodb.format.records import FileDigest

_PIECE = 1 << 22  # read at once: whole blocks


def digest_bytes(data: bytes) -> FileDigest:
    """The digest of a file that holds these bytes."""
    return FileDigest(len(data), hashlib.sha256(data).digest(), root_digest(block_digests(data)))


def digest_file(path: Path) -> FileDigest:
    """Size and digests of a file in one pass."""
    return digest_with_blocks(path)[0]


def digest_with_blocks(path: Path) -> tuple[FileDigest, bytes]:
    """Size and digests of a file, and the digests of its blocks, in one pass."""
    sha256, size, digests = hashlib.sha256(), 0, bytearray()
    for piece in _pieces(path):
        sha256.update(piece)
        digests += block_digests(piece)
        size += len(piece)
    return FileDigest(size, sha256.digest(), root_digest(bytes(digests))), bytes(digests)


def digests_of_blocks(path: Path) -> bytes:
    """The digests of all blocks of a file; `root_digest` of them is what the manifest has."""
    return b"".join(map(block_digests, _pieces(path)))


def root_of_file(path: Path) -> bytes:
    """The 16 bytes that the manifest has of a file with these bytes."""
    return root_digest(digests_of_blocks(path))


def xxh3_file(path: Path) -> bytes:
    """The 16 bytes of the xxh3-128 of a file outside of the manifest, such as one of an export."""
    xxh3 = xxhash.xxh3_128()
    for piece in _pieces(path):
        xxh3.update(piece)
    return xxh3.digest()


def identity(*parts: object) -> str:
    """A name for work: 32 hexadecimal digits that depend on nothing but these plain values."""
    data = orjson.dumps(parts, option=orjson.OPT_SORT_KEYS | orjson.OPT_SERIALIZE_NUMPY)
    return hashlib.sha256(data).hexdigest()[:32]


def _pieces(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:  # buffered: a piece is shorter at the end only
        while piece := file.read(_PIECE):
            yield piece
