"""A storage that fails at the k-th operation, in one of the ways that real ones do."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from retrodb.store.storage import FileStat, Storage, translate_os_error
from retrodb.store.temporary import TEMPORARY, temporary_name

READ_FAULTS = ("crash", "eio")
WRITE_FAULTS = ("crash", "eio", "enospc", "short", "done")
"""What can happen to an operation:

crash   the process dies before it, leaving its unfinished file; nothing of it runs any more
eio     it fails, nothing is done
enospc  it fails for lack of space, nothing is done
short   half of the bytes were written to a temporary file, then it fails
done    it is done, and fails nevertheless
"""


SURVIVED = "faults injected and survived"
"""Name of the property by which tests tell how many; the summary of a test run adds them up."""


class Crash(BaseException):
    """The process is dead: no handler may work on."""


class FaultyStorage:
    """Wraps a storage; operation `at` (from 0) meets `fault`, all others pass. With `at` None it only counts."""

    def __init__(self, inner: Storage, at: int | None = None, fault: str = "") -> None:
        self._inner, self._at, self._fault = inner, at, fault
        self.operations: list[tuple[str, str]] = []  # name and path, in order
        self._is_dead = False

    @property
    def url(self) -> str:
        return self._inner.url

    def probe(self) -> None:
        self._inner.probe()

    def read(self, path: str) -> bytes:
        with self._operation("read", path):
            return self._inner.read(path)

    def local(self, path: str) -> Path:
        with self._operation("local", path):
            return self._inner.local(path)

    def fetch(self, path: str) -> Path:
        with self._operation("local", path):
            return self._inner.fetch(path)

    def stat(self, path: str) -> FileStat:
        with self._operation("stat", path):
            return self._inner.stat(path)

    def stats(self, prefix: str) -> dict[str, FileStat]:
        with self._operation("stats", prefix):
            return self._inner.stats(prefix)

    def exists(self, path: str) -> bool:
        with self._operation("exists", path):
            return self._inner.exists(path)

    def list(self, prefix: str) -> list[str]:
        with self._operation("list", prefix):
            return self._inner.list(prefix)

    def write(self, path: str, data: bytes) -> None:
        with self._operation("write", path, data):
            self._inner.write(path, data)

    def read_pieces(self, path: str) -> Iterator[bytes]:
        with self._operation("read_pieces", path):
            yield from self._inner.read_pieces(path)

    def write_pieces(self, path: str, pieces: Iterable[bytes]) -> None:
        with self.stage(path) as temporary, temporary.open("wb") as file:
            file.writelines(pieces)

    def put_if_absent(self, path: str, data: bytes) -> bool:
        with self._operation("put_if_absent", path, data):
            return self._inner.put_if_absent(path, data)

    def delete(self, path: str) -> None:
        with self._operation("delete", path, b""):
            self._inner.delete(path)

    def delete_all(self, paths: Sequence[str]) -> None:
        for path in paths:
            self.delete(path)

    def remove_empty_folders(self, prefix: str) -> None:
        with self._operation("remove_empty_folders", prefix, b""):
            self._inner.remove_empty_folders(prefix)

    def working_folder(self) -> AbstractContextManager[Path]:
        return self._inner.working_folder()

    @property
    def keeps_versions(self) -> bool:
        return self._inner.keeps_versions

    def forget_copies(self) -> None:
        self._inner.forget_copies()

    @contextmanager
    def stage(self, path: str) -> Iterator[Path]:
        with self._inner.stage(path) as local:
            yield local
            # Before the file is published; "done" comes after.
            self._begin("stage", path, local.read_bytes())
        self._end()

    @contextmanager
    def _operation(self, name: str, path: str, data: bytes | None = None) -> Iterator[None]:
        self._begin(name, path, data)
        yield
        self._end()

    def _begin(self, name: str, path: str, data: bytes | None) -> None:
        if self._is_dead:
            raise Crash
        self.operations.append((name, path))
        if not self._is_now():
            return
        if self._fault in ("crash", "short") and data:
            left = Path(self._inner.url) / TEMPORARY
            left.mkdir(parents=True, exist_ok=True)
            (left / temporary_name("left-behind")).write_bytes(data[: len(data) // 2])
        if self._fault == "crash":
            self._is_dead = True
            raise Crash
        if self._fault != "done":
            self._fail(path)

    def _end(self) -> None:
        if self._is_now() and self._fault == "done":
            self._fail(self.operations[-1][1])

    def _is_now(self) -> bool:
        return self._at == len(self.operations) - 1

    def _fail(self, path: str) -> None:
        number = errno.ENOSPC if self._fault == "enospc" else errno.EIO
        raise translate_os_error(OSError(number, os.strerror(number)), path)


def faults_of(operation: str) -> tuple[str, ...]:
    """The faults that can happen to an operation of this name."""
    return (
        WRITE_FAULTS
        if operation in ("write", "put_if_absent", "delete", "remove_empty_folders", "stage")
        else READ_FAULTS
    )
