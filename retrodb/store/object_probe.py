"""Whether an object store keeps what a database needs: of several writers of one object exactly one wins, and lists are current.

Some stores ignore the condition of a put without a word. Two commands that commit at the same time would lose one commit there.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

from retrodb.errors import RetroDBError
from retrodb.store.object_client import ObjectClient
from retrodb.store.object_errors import NEEDED_STORE
from retrodb.store.temporary import TEMPORARY, temporary_name

WRITERS, RACES = 8, 16


def probe_store(client: ObjectClient) -> None:
    """Create objects in races, list them, and delete them again.

    Raises:
        RetroDBError: two writers created the same object, none did, or a list misses an object; or the store cannot be written.
    """
    paths = [f"{TEMPORARY}/{temporary_name(f'probe-{number}')}" for number in range(RACES)]
    try:
        for path in paths:
            winners = _race(client, path)
            if len(winners) != 1:
                what = f"of {WRITERS} writers of the same new object {len(winners)} succeeded, and not one"
                raise RetroDBError(
                    f"this object store ignores conditions of writes: {what}", where=client.url, remedy=NEEDED_STORE
                )
            _compare(client, path, winners[0])
        _compare_list(client, set(paths), are_there=True)
    finally:
        client.delete(paths)
    _compare_list(client, set(paths), are_there=False)


def _race(client: ObjectClient, path: str) -> Sequence[int]:
    """The writers that say that they created an object: those of a race, and one that comes after it."""
    barrier = Barrier(WRITERS - 1)

    def create(writer: int) -> bool:
        barrier.wait()
        return client.put(path, _content(writer), create=True) is not None

    with ThreadPoolExecutor(WRITERS - 1) as pool:
        won = list(pool.map(create, range(WRITERS - 1)))
    won.append(client.put(path, _content(WRITERS - 1), create=True) is not None)
    return [writer for writer in range(WRITERS) if won[writer]]


def _compare(client: ObjectClient, path: str, winner: int) -> None:
    fetched = client.get(path)
    if fetched is None or fetched.data != _content(winner) or not fetched.info.etag:
        what = "an object is not what its writer was told, or has no etag"
        raise RetroDBError(f"this object store cannot have a database: {what}", where=client.url, remedy=NEEDED_STORE)


def _compare_list(client: ObjectClient, paths: set[str], *, are_there: bool) -> None:
    if (paths & set(client.infos(TEMPORARY))) != (paths if are_there else set()):
        what = "its lists do not show what was just " + ("written" if are_there else "deleted")
        raise RetroDBError(f"this object store cannot have a database: {what}", where=client.url, remedy=NEEDED_STORE)


def _content(writer: int) -> bytes:
    return f"probe of writer {writer}".encode()
