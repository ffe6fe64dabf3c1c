"""Copies of objects on this machine: files of the user's cache folder, with a limit.

A copy is named by what it is a copy of (URL and etag) and never changes, so several processes can use one. Least recently used
copies go first. One that a process has mapped can go too: its bytes stay until the last mapping ends. A copy that was used in
the last minute stays, because a reader may not have opened it yet.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from retrodb.errors import UsageError
from retrodb.store.cached_lines import cache_folder
from retrodb.store.temporary import TEMPORARY, is_abandoned, temporary_name

SIZE_VARIABLE = "RETRODB_CACHE_SIZE"
DEFAULT_BYTES = 32 << 30
_IN_USE_S = 60.0
_LOOKS = 16  # a process looks at all copies whenever it has added this part of the limit
_SIZE = re.compile(r"(\d+)\s*([KMGT]?)(?:I?B)?", re.IGNORECASE)


@dataclass(frozen=True)
class Copy:
    """A copy that is there."""

    path: Path
    etag: str


class ObjectCache:
    """The copies of the objects of one database. Each is alone in a folder, under the name that the object has."""

    def __init__(self, root: Path, limit_bytes: int, url: str) -> None:
        """
        Args:
            root: the folder of the copies of all databases, which the limit is for.
            url: of the database.
        """
        self.root, self._limit_bytes = root, limit_bytes
        self._folder = root / hashlib.sha256(url.encode()).hexdigest()[:32]
        self._unseen_bytes: float = float("inf")  # added by this process since it last looked at all copies

    def find(self, path: str) -> Copy | None:
        """The newest copy of an object."""
        copies = [Copy(folder / _name_of(path), _etag_of(folder)) for folder in self._folders_of(path)]
        newest_first = sorted(copies, key=lambda copy: _made_s(copy.path), reverse=True)
        return next((copy for copy in newest_first if self.has(copy.path) and _is_whole(copy.path)), None)

    @contextmanager
    def temporary(self, path: str) -> Iterator[Path]:
        """A path for a new file, which is removed when the block ends, unless `keep` has moved it."""
        temporary = self._temporary_folder() / temporary_name(_name_of(path)[-100:])
        try:
            yield temporary
        finally:
            temporary.unlink(missing_ok=True)

    @contextmanager
    def working_folder(self) -> Iterator[Path]:
        """An empty folder, which is removed when the block ends."""
        with TemporaryDirectory(dir=self._temporary_folder(), prefix=temporary_name("")) as folder:
            yield Path(folder)

    def keep(self, path: str, etag: str, file: Path) -> Path:
        """Make a file the copy of an object; older copies of it go."""
        size_bytes = file.stat().st_size
        folder = self._folder_of(path, etag, size_bytes)
        self._make_room(size_bytes)
        _mark_used(file)
        self._make_root()
        try:
            _move_into(folder, file, _name_of(path))
        except FileNotFoundError:  # another process has removed the folder while it was empty
            _move_into(folder, file, _name_of(path))
        for other in self._folders_of(path):
            if other != folder:
                _remove(other / _name_of(path))
        self._unseen_bytes += size_bytes
        return folder / _name_of(path)

    def has(self, copy: Path) -> bool:
        """Whether a copy is still there. It counts as used."""
        try:
            _mark_used(copy)
        except FileNotFoundError:
            return False
        return True

    def forget(self, path: str) -> None:
        """Remove the copies of an object."""
        for folder in self._folders_of(path):
            _remove(folder / _name_of(path))

    def forget_others(self, objects: Mapping[str, tuple[str, int]], listed_s: float) -> None:
        """Remove every copy that is of none of these objects, which are given by path with their etags and sizes.

        Args:
            listed_s: when they were listed, in seconds since 1970. Later copies are of objects that the list may not have.
        """
        current = {self._folder_of(path, *version) for path, version in objects.items()}
        for copy in self._copies(self._folder):
            if copy.parent not in current and _made_s(copy) < listed_s:
                _remove(copy)

    def _place(self, path: str) -> Path:
        """The folder of the copies of an object, without the end that names the etag."""
        digest = hashlib.sha256(path.encode()).hexdigest()[:40]
        return self._folder / digest[:2] / digest

    def _folder_of(self, path: str, etag: str, size_bytes: int) -> Path:
        return self._place(path).with_suffix(f".{_text_of(etag)}-{size_bytes}")

    def _folders_of(self, path: str) -> list[Path]:
        place = self._place(path)
        return [folder for folder in _entries(place.parent) if folder.stem == place.name]

    def _temporary_folder(self) -> Path:
        self._make_root()
        folder = self.root / TEMPORARY
        folder.mkdir(exist_ok=True)
        return folder

    def _make_root(self) -> None:
        """Make the folder of all copies. Documents are in it, so only this user may look into it."""
        self.root.parent.mkdir(parents=True, exist_ok=True)
        self.root.mkdir(mode=0o700, exist_ok=True)

    def _make_room(self, size_bytes: int) -> None:
        """Remove what was not used for longest, until a new copy fits. Files of processes that were killed go too."""
        if self._unseen_bytes + size_bytes < self._limit_bytes / _LOOKS:
            return
        self._unseen_bytes = 0
        for path in _entries(self.root / TEMPORARY):
            if is_abandoned(f"{TEMPORARY}/{path.name}"):
                _remove_any(path)
        folders = (folder for folder in _entries(self.root) if folder.name != TEMPORARY)
        paths = (path for folder in folders for path in self._copies(folder))
        copies = sorted((_used_s(path), path, _size(path)) for path in paths)
        excess = size_bytes + sum(size for _, _, size in copies) - self._limit_bytes * (_LOOKS - 1) // _LOOKS
        for used_s, path, size in copies:
            if excess <= 0 or time.time() - used_s < _IN_USE_S:
                return
            _remove(path)
            excess -= size

    @staticmethod
    def _copies(folder: Path) -> Iterator[Path]:
        """All copies of one database."""
        for digits in _entries(folder):
            for version in _entries(digits):
                yield from _entries(version)


def object_cache(url: str) -> ObjectCache:
    """The copies of a database in the cache of this user. `RETRODB_CACHE_DIR` moves it, `RETRODB_CACHE_SIZE` limits it.

    Raises:
        UsageError: the limit is not a size.
    """
    return ObjectCache(cache_folder() / "objects", cache_limit(), url)


def cache_limit() -> int:
    """The limit of the cache in bytes. Raises UsageError."""
    text = os.environ.get(SIZE_VARIABLE, "").strip()
    if not text:
        return DEFAULT_BYTES
    match = _SIZE.fullmatch(text)
    if match is None:
        raise UsageError(
            f"'{text}' is not a size", where=SIZE_VARIABLE, remedy="Write 100GiB, 500MiB or a number of bytes."
        )
    return int(match[1]) << (10 * " KMGT".index(match[2].upper() or " "))


def _name_of(url: str) -> str:
    return url.rpartition("/")[2]


def _text_of(etag: str) -> str:
    return base64.urlsafe_b64encode(etag.encode()).decode()


def _etag_of(folder: Path) -> str:
    return base64.urlsafe_b64decode(folder.suffix[1:].rpartition("-")[0]).decode()


def _is_whole(copy: Path) -> bool:
    """Whether a copy has the size of its object: a machine that lost power can have lost bytes."""
    return copy.parent.name.endswith(f"-{_size(copy)}")


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def _move_into(folder: Path, file: Path, name: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    os.replace(file, folder / name)


def _remove(copy: Path) -> None:
    copy.unlink(missing_ok=True)
    with suppress(OSError):  # another process is making a new copy
        copy.parent.rmdir()


def _remove_any(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _mark_used(path: Path) -> None:
    """Set the time of last access. The time of the last change stays: what was verified is known by it."""
    stat = path.stat()
    if time.time() - stat.st_atime > _IN_USE_S / 4:
        os.utime(path, ns=(time.time_ns(), stat.st_mtime_ns))


def _used_s(path: Path) -> float:
    try:
        return path.stat().st_atime
    except FileNotFoundError:
        return 0.0


def _made_s(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return float("inf")


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
