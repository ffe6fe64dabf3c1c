"""Where the bytes of inputs are: files on this machine, and objects in a store (`s3://bucket/key`)."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import IO, TYPE_CHECKING

from retrodb.store.object_urls import is_object_url

if TYPE_CHECKING:
    import pyarrow as pa


def open_source(path: str | Path, *, buffered: bool = True) -> IO[bytes]:
    """The stored bytes of an input.

    Raises:
        OSError: the file cannot be opened, or there is no such object.
        RetroDBError: the store cannot be read.
    """
    if not is_object_url(str(path)):
        return open(path, "rb", buffering=-1 if buffered else 0)
    from retrodb.store.object_file import ObjectFile

    raw = ObjectFile(str(path))
    return io.BufferedReader(raw, 1 << 20) if buffered else raw  # type: ignore[return-value]


def arrow_source(path: str) -> pa.NativeFile:
    """The stored bytes of an input for Arrow, which reads them at random positions. Raises as `open_source`."""
    import pyarrow as pa

    if is_object_url(path):
        return pa.PythonFile(open_source(path), mode="r")
    return pa.OSFile(os.fsencode(path))  # as bytes, since the name may not be UTF-8


def source_size(path: str) -> int:
    """The size in stored bytes. Raises as `open_source`."""
    if not is_object_url(path):
        return os.path.getsize(path)
    from retrodb.store.object_file import object_size

    size_bytes = object_size(path)
    if size_bytes is None:
        raise FileNotFoundError(path)
    return size_bytes
