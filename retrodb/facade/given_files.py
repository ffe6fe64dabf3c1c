"""The files that a caller gives: inputs, which may be objects in a store, and outputs, which may not."""

from __future__ import annotations

from pathlib import Path

from retrodb.errors import InputError, MissingFileError, UsageError
from retrodb.store.object_urls import bucket_and_key, is_object_url


def given_input(path: str | Path) -> Path:
    """The file of an argument. Of an object it is a copy on this machine, so this is for small inputs.

    Raises:
        InputError: there is no such object.
    """
    if not is_object_url(str(path)):
        return Path(path)
    from retrodb.store.object_storage import ObjectStorage

    bucket, key = bucket_and_key(str(path))
    try:
        return ObjectStorage(bucket).local(key)
    except MissingFileError:
        raise InputError("no such object", where=str(path), remedy="Check the URL.") from None


def given_output(path: str | Path) -> Path:
    """The file or folder to write to. Raises UsageError for a URL."""
    if is_object_url(str(path)):
        raise UsageError(
            "this output cannot be in an object store", where=str(path), remedy="Write to a local path, and copy it."
        )
    return Path(path)
