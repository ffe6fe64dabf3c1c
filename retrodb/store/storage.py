"""Storage: the few operations on named bytes that everything else is built from.

Paths are relative, with `/` between parts. Files are written once and never changed. Which of two writers came
first is decided by `put_if_absent` alone.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from itertools import accumulate, islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol, TypeVar

from retrodb.errors import DamagedFileError, MissingFileError, RetroDBError
from retrodb.store.exclusive_rename import rename_if_absent
from retrodb.store.full_disk import is_disk_full, no_space
from retrodb.store.temporary import TEMPORARY, temporary_name

T = TypeVar("T")

_PIECE = 4 << 20  # bytes that a stream reads at once


@dataclass(frozen=True)
class FileStat:
    """What storage knows of a file without opening it."""

    size_bytes: int
    modified_ns: int  # since 1970, by the clock of the storage: when its bytes were last written, or a little later
    changed_ns: int  # when anything of the file last changed; no program can set it
    stamp: str  # changes whenever the file does

    @property
    def modified_s(self) -> float:
        """Seconds since 1970."""
        return self.modified_ns / 1e9


class Storage(Protocol):
    """The operations a database needs: of a local directory, or of an object store."""

    def __hash__(self) -> int:
        """Equal storages are of the same place: what was read from one holds for the other."""
        ...

    @property
    def url(self) -> str:
        """What `open_storage` opens again in another process."""
        ...

    def probe(self) -> None:
        """Try, for a new database, what only the store can promise. Raises RetroDBError where it does not keep it."""
        ...

    def read(self, path: str) -> bytes:
        """A file's bytes. Raises MissingFileError."""
        ...

    def local(self, path: str) -> Path:
        """A local copy to read or memory-map; the file itself where storage is local. Raises MissingFileError."""
        ...

    def fetch(self, path: str) -> Path:
        """As `local`, with bytes that come from the storage now and not from an earlier copy."""
        ...

    def stat(self, path: str) -> FileStat:
        """Size, time and stamp of a file, which is not opened. Raises MissingFileError."""
        ...

    def stats(self, prefix: str) -> dict[str, FileStat]:
        """What `stat` says of every file below a folder, sorted by path. Files that are deleted meanwhile may be missing."""
        ...

    def write(self, path: str, data: bytes) -> None:
        """Publish bytes atomically: afterwards the file is whole and durable, or it was never there."""
        ...

    def read_pieces(self, path: str) -> Iterator[bytes]:
        """A file's bytes, piece by piece. No copy stays on this machine. Raises MissingFileError."""
        ...

    def write_pieces(self, path: str, pieces: Iterable[bytes]) -> None:
        """As `write`; when `pieces` raises an error, the file was never there. No copy stays on this machine."""
        ...

    def stage(self, path: str) -> AbstractContextManager[Path]:
        """A local path to write to; published atomically as `path` when the block ends without an error."""
        ...

    def working_folder(self) -> AbstractContextManager[Path]:
        """An empty local folder whose files can be moved to staged paths; it is removed when the block ends."""
        ...

    def put_if_absent(self, path: str, data: bytes) -> bool:
        """Publish bytes unless the path exists; exactly one of several writers gets True."""
        ...

    def exists(self, path: str) -> bool:
        """Whether a file is there."""
        ...

    def list(self, prefix: str) -> list[str]:
        """All files below a folder, sorted."""
        ...

    def delete(self, path: str) -> None:
        """Delete a file; a file that does not exist is no error."""
        ...

    def delete_all(self, paths: Sequence[str]) -> None:
        """Delete files, in their order or several at once. It may be interrupted anywhere."""
        ...

    def remove_empty_folders(self, prefix: str) -> None:
        """Remove the folders below a folder that contain no file, where storage has folders."""
        ...

    @property
    def keeps_versions(self) -> bool:
        """Whether deleted and replaced files stay where only the owner of the storage can delete them."""
        ...

    def forget_copies(self) -> None:
        """Remove copies on this machine of files that are not there any more."""
        ...


class LocalStorage:
    """A directory. Publishing is: temporary file, fsync, rename or link, fsync of the directory."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LocalStorage) and other.root == self.root

    def __hash__(self) -> int:
        return hash(self.root)

    @property
    def url(self) -> str:
        return str(self.root)

    def probe(self) -> None:
        """The file system is asked by each `put_if_absent`."""

    def read(self, path: str) -> bytes:
        with self._errors(path):
            return self._absolute(path).read_bytes()

    def local(self, path: str) -> Path:
        absolute = self._absolute(path)
        if not absolute.is_file():
            raise missing_file(path)
        return absolute

    def fetch(self, path: str) -> Path:
        return self.local(path)

    def stat(self, path: str) -> FileStat:
        with self._errors(path), suppress(FileNotFoundError, NotADirectoryError):
            found = self._absolute(path).stat()
            if stat.S_ISREG(found.st_mode):
                return FileStat(found.st_size, found.st_mtime_ns, found.st_ctime_ns, _stamp(found))
        raise missing_file(path)

    def stats(self, prefix: str) -> dict[str, FileStat]:
        stats = {}
        for path in self.list(prefix):
            with suppress(MissingFileError):
                stats[path] = self.stat(path)
        return stats

    def write(self, path: str, data: bytes) -> None:
        with self.stage(path) as temporary, self._errors(path):
            temporary.write_bytes(data)

    def read_pieces(self, path: str) -> Iterator[bytes]:
        with self._errors(path), self._absolute(path).open("rb") as file:
            while piece := file.read(_PIECE):
                yield piece

    def write_pieces(self, path: str, pieces: Iterable[bytes]) -> None:
        with self.stage(path) as temporary, temporary.open("wb") as file:
            file.writelines(pieces)

    @contextmanager
    def stage(self, path: str) -> Iterator[Path]:
        with self._temporary(path) as temporary:
            yield temporary
            target = self._absolute(path)
            _sync_file(temporary)
            _move(os.replace, temporary, target)
            _sync_directory(target.parent)

    @contextmanager
    def working_folder(self) -> Iterator[Path]:
        temporary = self.root / TEMPORARY
        temporary.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=temporary, prefix=temporary_name("")) as folder:
            yield Path(folder)

    def put_if_absent(self, path: str, data: bytes) -> bool:
        with self._temporary(path) as temporary:
            target = self._absolute(path)
            temporary.write_bytes(data)
            _sync_file(temporary)
            if not _move(rename_if_absent, temporary, target):
                return False
            _sync_directory(target.parent)
            return True

    def exists(self, path: str) -> bool:
        return self._absolute(path).is_file()

    def list(self, prefix: str) -> list[str]:
        paths: list[str] = []
        with self._errors(prefix):
            for folder, _, names in os.walk(self._absolute(prefix), onerror=_unless_missing):
                relative = Path(folder).relative_to(self.root)
                paths.extend((relative / name).as_posix() for name in names)
        return sorted(paths)

    def delete(self, path: str) -> None:
        with self._errors(path):
            self._absolute(path).unlink(missing_ok=True)

    def delete_all(self, paths: Sequence[str]) -> None:
        for path in paths:
            self.delete(path)

    def remove_empty_folders(self, prefix: str) -> None:
        root = self._absolute(prefix)
        with self._errors(prefix):
            for folder, _, names in os.walk(root, topdown=False, onerror=_unless_missing):
                if not names and Path(folder) != root:
                    with suppress(OSError):  # not empty, or another process removed it
                        os.rmdir(folder)

    @property
    def keeps_versions(self) -> bool:
        return False

    def forget_copies(self) -> None:
        """There are no copies."""

    def _absolute(self, path: str) -> Path:
        if not self._is_inside(path):
            raise outside_database(path)
        return self.root / path

    def _is_inside(self, path: str) -> bool:
        """Whether a path leads to a place inside of the directory. Symbolic links are followed only where there are some."""
        names = path.split("/")
        if ".." in names or "\0" in path:
            return False
        parts = accumulate(names, os.path.join, initial=str(self.root))
        if not os.path.isabs(path) and not any(os.path.islink(part) for part in islice(parts, 1, None)):
            return True
        inside = os.path.join(os.path.realpath(self.root), "")
        return f"{os.path.realpath(self.root / path)}/".startswith(inside)

    @contextmanager
    def _temporary(self, path: str) -> Iterator[Path]:
        """A new temporary file; it is removed when an error ends the block."""
        with self._errors(path):
            folder = self.root / TEMPORARY
            folder.mkdir(parents=True, exist_ok=True)
            self._absolute(path).parent.mkdir(parents=True, exist_ok=True)
            temporary = folder / temporary_name(path.rpartition("/")[2])
            try:
                yield temporary
            finally:
                temporary.unlink(missing_ok=True)

    def _errors(self, path: str) -> AbstractContextManager[None]:
        return translated_errors(path, str(self.root / path))


@contextmanager
def translated_errors(path: str, where: str) -> Iterator[None]:
    """Operating system errors, and what libraries make of them, as errors that say what to do."""
    try:
        yield
    except FileNotFoundError as error:
        raise missing_file(path) from error
    except OSError as error:
        raise translate_os_error(error, where) from error
    except RuntimeError as error:  # FAISS reports a failed write as one
        if not is_disk_full(error):
            raise
        raise no_space(where) from error


def translate_os_error(error: OSError, where: str) -> RetroDBError:
    """The retrodb error for an operating system error."""
    if is_disk_full(error):
        return no_space(where)
    if error.errno == errno.EROFS:
        return RetroDBError(
            "the file system is mounted read-only", where=where, remedy="Work on a copy of the database elsewhere."
        )
    if error.errno == errno.ENOTDIR:
        return RetroDBError("a part of this path is a file, not a folder", where=where, remedy="Check the path.")
    if error.errno in (errno.EACCES, errno.EPERM):
        return RetroDBError(
            "no permission to write here", where=where, remedy="Check the owner and mode of the folder."
        )
    reason = error.strerror or str(error)
    return RetroDBError(reason, where=where, remedy="Run the same command again: finished work is kept.")


def missing_file(path: str) -> MissingFileError:
    """The error for a file that is not there."""
    return MissingFileError(
        "file is missing",
        where=path,
        remedy="Run 'retrodb check' to see what else is missing, or restore it from a backup.",
    )


def outside_database(path: str) -> DamagedFileError:
    """The error for a path that leads out of the database."""
    return DamagedFileError(
        "the path leads outside of the database",
        where=repr(path),
        remedy="Use this database only if you know its origin; look for symbolic links in it.",
    )


def _stamp(found: os.stat_result) -> str:
    """Device, inode, size, and the times of the last change of the bytes and of the inode."""
    return f"{found.st_dev}:{found.st_ino}:{found.st_size}:{found.st_mtime_ns}:{found.st_ctime_ns}"


def _move(move: Callable[[Path, Path], T], temporary: Path, target: Path) -> T:
    """Move or link a file to its place; a collection may have removed the empty folder that was made for it."""
    try:
        return move(temporary, target)
    except FileNotFoundError:
        target.parent.mkdir(parents=True, exist_ok=True)
        return move(temporary, target)


def _unless_missing(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error


def _sync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_directory(path: Path) -> None:
    _sync_file(path)
