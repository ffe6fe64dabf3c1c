"""The files of snapshots, with what proves their bytes; and how bytes are proved while they pass."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import xxhash

from retrodb.errors import DamagedFileError, MissingFileError
from retrodb.format.blocks import DIGEST_BYTES, num_blocks
from retrodb.format.kinds import path_of
from retrodb.format.records import FileRecord
from retrodb.format.snapshot import Snapshot
from retrodb.store.collection import collected_stats
from retrodb.store.manifest import load_manifest
from retrodb.store.storage import FileStat, Storage
from retrodb.store.verify import remedy

_OF_SNAPSHOT = "Restore it from a backup, or copy another snapshot."


@dataclass(frozen=True)
class NamedFile:
    """A file that a snapshot needs."""

    path: str
    size_bytes: int
    digest: bytes  # SHA-256 of its bytes; for block digests, which are named by another file, their xxh3-128
    record: FileRecord | None  # in the manifest: its own, or that of the file that the block digests describe

    @property
    def has_block_digests(self) -> bool:
        """Whether it is a file of block digests."""
        return self.record is not None and self.record.path != self.path

    @property
    def remedy(self) -> str:
        """What to do when it is damaged or missing."""
        if self.record is None:
            return _OF_SNAPSHOT
        return "Run 'retrodb check --repair' there." if self.has_block_digests else remedy(self.record)


def files_of_snapshots(storage: Storage, snapshots: Iterable[Snapshot]) -> dict[str, NamedFile]:
    """All files that some snapshots need, by path. It reads their manifests, and lists two folders.

    Raises:
        MissingFileError, DamagedFileError: a segment of a manifest, or a row bitmap, is missing or damaged.
    """
    sizes = {**storage.stats("manifests"), **storage.stats("rows")}
    files: dict[str, NamedFile] = {}
    for snapshot in {snapshot.segments: snapshot for snapshot in snapshots}.values():
        for ref in snapshot.segments:
            _add_by_name(files, sizes, path_of("manifests", digest=ref.digest), ref.digest)
        for record in load_manifest(storage, snapshot).all_files():
            files[record.path] = NamedFile(record.path, record.digest.size_bytes, record.digest.sha256, record)
            if record.rows is not None:
                _add_by_name(files, sizes, path_of("rows", digest=record.rows), record.rows)
            if record.blocks_path is not None:
                size = num_blocks(record.digest.size_bytes) * DIGEST_BYTES
                files[record.blocks_path] = NamedFile(record.blocks_path, size, record.digest.xxh3, record)
    return files


def _add_by_name(files: dict[str, NamedFile], sizes: Mapping[str, FileStat], path: str, digest: str) -> None:
    """Add a file that is named by its digest. No record has its size."""
    if path not in sizes:
        raise MissingFileError("file is missing", where=path, remedy=_OF_SNAPSHOT)
    files[path] = NamedFile(path, sizes[path].size_bytes, bytes.fromhex(digest), None)


def sizes_there(storage: Storage, files: Iterable[str]) -> dict[str, int]:
    """The sizes of all files of a place that may be those of a database. Files outside of folders are asked for one by one.

    Args:
        files: paths that are looked for.
    """
    sizes = {path: stat.size_bytes for path, stat in collected_stats(storage).items()}
    for path in files:
        if "/" not in path and storage.exists(path):
            sizes[path] = storage.stat(path).size_bytes
    return sizes


def verified(pieces: Iterable[bytes], file: NamedFile, where: str) -> Iterator[bytes]:
    """The pieces of a file, which are proved when the last one has passed.

    Raises:
        MissingFileError: there is no such file.
        DamagedFileError: they are not those that the snapshot promises.
    """
    digest = xxhash.xxh3_128() if file.has_block_digests else hashlib.sha256()
    size_bytes = 0
    try:
        for piece in pieces:
            digest.update(piece)
            size_bytes += len(piece)
            yield piece
    except MissingFileError as error:
        raise MissingFileError("file is missing", where=where, remedy=file.remedy) from error
    if size_bytes != file.size_bytes:
        raise DamagedFileError(f"{size_bytes} bytes instead of {file.size_bytes}", where=where, remedy=file.remedy)
    if digest.digest() != file.digest:
        raise DamagedFileError("checksum mismatch", where=where, remedy=file.remedy)


def is_whole(storage: Storage, file: NamedFile) -> bool:
    """Whether a file that is there has the bytes that the snapshot promises. All of it is read."""
    try:
        for _ in verified(storage.read_pieces(file.path), file, file.path):
            pass
    except DamagedFileError:  # or missing
        return False
    return True
