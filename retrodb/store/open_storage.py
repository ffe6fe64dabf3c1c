"""From a path or URL to a storage."""

from __future__ import annotations

from retrodb.errors import RetroDBError
from retrodb.store.scratch import SCHEME, ScratchStorage
from retrodb.store.storage import LocalStorage, Storage


def open_storage(url: str) -> Storage:
    """The storage of a URL; a plain path is a local directory.

    Raises:
        RetroDBError: for a scheme this version does not know.
    """
    if url.startswith(SCHEME):
        return ScratchStorage.open(url)
    scheme, separator, _ = url.partition("://")
    if separator and scheme != "file":
        raise RetroDBError(f"storage scheme '{scheme}' is not supported", where=url, remedy="Use a local directory.")
    return LocalStorage(url.removeprefix("file://"))
