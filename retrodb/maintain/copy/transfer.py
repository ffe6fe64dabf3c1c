"""Copying files: a few at a time, each in pieces, and each verified before it gets its name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from threading import Event, Lock
from typing import TypeVar

from retrodb.engine.progress import Bar, Progress
from retrodb.maintain.copy.files import NamedFile, is_whole, verified
from retrodb.store.storage import Storage

T = TypeVar("T")


class _Stopped(Exception):
    """Another thread has failed, or the user has interrupted the command."""


class Threads:
    """Does something with every item of a list, several at a time."""

    def __init__(self, number: int) -> None:
        self._number, self._stop = number, Event()

    def each(self, work: Callable[[T], None], items: Iterable[T]) -> None:
        """Do it. The first error ends it, and so does an interrupt.

        Raises:
            BaseException: what `work` raised first.
        """
        remaining, lock, errors = iter(items), Lock(), list[BaseException]()

        def next_items() -> Iterator[T]:
            while not self._stop.is_set():
                with lock:
                    try:
                        item = next(remaining)
                    except StopIteration:
                        return
                yield item

        def run() -> None:
            try:
                for item in next_items():
                    work(item)
            except BaseException as error:  # noqa: BLE001 - the thread that waits raises it
                errors.append(error)
                self._stop.set()

        with ThreadPoolExecutor(self._number) as pool:
            try:
                wait([pool.submit(run) for _ in range(self._number)])
            finally:
                self._stop.set()
        self._stop.clear()
        if errors:
            raise errors[0]

    def check(self) -> None:
        """Called between the pieces of an item: ends the work on it early."""
        if self._stop.is_set():
            raise _Stopped


def copy_files(
    source: Storage, destination: Storage, files: Sequence[NamedFile], threads: Threads, progress: Progress
) -> None:
    """Copy files. One that is killed leaves whole files, and unfinished ones in `tmp/`.

    Raises:
        MissingFileError, DamagedFileError: a file of the source; it is not in the destination then.
    """
    with progress.stage("copy", sum(file.size_bytes for file in files), "B") as bar:
        shown = _Shown(bar)

        def copy(file: NamedFile) -> None:
            pieces = verified(source.read_pieces(file.path), file, f"{source.url}/{file.path}")
            destination.write_pieces(file.path, _watched(pieces, threads, shown))

        threads.each(copy, files)


def find_damaged(storage: Storage, files: Sequence[NamedFile], threads: Threads, progress: Progress) -> set[str]:
    """The paths of the files whose bytes are not those that their snapshot promises. All of them are read."""
    damaged = set[str]()
    with progress.stage("verify", sum(file.size_bytes for file in files), "B") as bar:
        shown = _Shown(bar)

        def verify(file: NamedFile) -> None:
            threads.check()
            if not is_whole(storage, file):
                damaged.add(file.path)
            shown.advance(file.size_bytes)

        threads.each(verify, files)
    return damaged


class _Shown:
    """A progress bar for several threads."""

    def __init__(self, bar: Bar) -> None:
        self._bar, self._lock = bar, Lock()

    def advance(self, num_bytes: int) -> None:
        with self._lock:
            self._bar.advance(num_bytes)


def _watched(pieces: Iterable[bytes], threads: Threads, shown: _Shown) -> Iterator[bytes]:
    for piece in pieces:
        threads.check()
        yield piece
        shown.advance(len(piece))
