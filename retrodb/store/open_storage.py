"""From a path or URL to a storage."""

from __future__ import annotations

from pathlib import Path

from retrodb.errors import RetroDBError
from retrodb.store.object_urls import SCHEMES, is_object_url
from retrodb.store.scratch import BASE_FILE, SCHEME, ScratchStorage
from retrodb.store.storage import LocalStorage, Storage


def open_storage(url: str) -> Storage:
    """The storage of a URL; a plain path is a local directory.

    Raises:
        RetroDBError: for a scheme this version does not know, or a URL that names no place in a bucket.
        MissingDependency: for an object store without the extra that it needs.
    """
    if url.startswith(SCHEME):
        folder = Path(url.removeprefix(SCHEME))
        return ScratchStorage(folder, open_storage((folder / BASE_FILE).read_text(encoding="utf-8")))
    if is_object_url(url):
        from retrodb.store.object_storage import ObjectStorage

        return ObjectStorage(url)
    scheme, separator, _ = url.partition("://")
    if separator and scheme != "file":
        known = ", ".join(f"{name}://" for name in SCHEMES)
        raise RetroDBError(
            f"storage scheme '{scheme}' is not supported",
            where=url,
            remedy=f"Use a local directory, or one of {known}.",
        )
    return LocalStorage(url.removeprefix("file://"))
