"""The files that a caller gives: inputs and outputs, which may be objects in a store, and outputs which may not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
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


@contextmanager
def given_new_file(path: str | Path) -> Iterator[Path]:
    """A file to write: that of an argument, or for the URL of an object a local one, which is uploaded when the block ends.

    Raises:
        UsageError: there is such an object, or the URL names none.
    """
    if not is_object_url(str(path)):
        yield Path(path)
        return
    from retrodb.store.object_storage import ObjectStorage

    bucket, key = bucket_and_key(str(path))
    if not key or key.endswith("/"):
        remedy = "Write the URL of the new object, such as s3://my-bucket/my.faiss."
        raise UsageError("this URL names no object", where=str(path), remedy=remedy)
    storage = ObjectStorage(bucket)
    if storage.exists(key):
        raise UsageError("exists already", where=str(path), remedy="Choose another name, or delete the object.")
    with storage.working_folder() as folder:
        file = folder / Path(key).name
        yield file
        if file.exists():
            storage.upload(key, file)


def given_output(path: str | Path) -> Path:
    """The file or folder to write to. Raises UsageError for a URL."""
    if is_object_url(str(path)):
        raise UsageError(
            "this output cannot be in an object store", where=str(path), remedy="Write to a local path, and copy it."
        )
    return Path(path)
