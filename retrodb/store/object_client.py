"""Requests to an object store. This module and `object_errors.py` are the only ones that know obstore.

A request that fails for a passing reason is made again, a few times, with growing pauses. An answer to a put can leave open
whether it happened: 409, 412, a 500, a lost connection, a time-out. Then the object is read. Every put has a mark of its own, so
that a writer knows its object even if another one has written the same bytes.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from retrodb.errors import MissingDependency, RetroDBError, UsageError
from retrodb.store.aws_profile import profile_options
from retrodb.store.object_errors import ShortBodyError, is_missing_bucket, is_passing, status_of, store_error
from retrodb.store.object_urls import check_url
from retrodb.store.storage import missing_file

if TYPE_CHECKING:
    from obstore import Bytes, GetOptions, GetResult, ObjectMeta
    from obstore.store import ClientConfig, ObjectStore, RetryConfig

T = TypeVar("T")

PIECE_BYTES = 8 << 20  # of a large object, read or written by one request
CONCURRENT_PIECES = 4  # so a transfer needs 32 MiB of memory
_MAX_PARTS = 9_000  # S3 allows 10,000
PAUSES_S = (0.1, 0.5, 2.0, 8.0)  # before the same request is made again
STORE_RETRIES = 6  # of obstore, in each of these attempts
_DELETED_AT_ONCE = 1000
_MARK = "retrodbwriter"  # Azure allows letters, digits and underscores
_VARIABLES = {
    "s3": ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION"),
    "gs": ("GOOGLE_APPLICATION_CREDENTIALS",),
    "az": ("AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_ACCOUNT_KEY"),
}
_ENVIRONMENT = ("AWS_", "AZURE_", "GOOGLE_", "GCS_")


@dataclass(frozen=True)
class ObjectInfo:
    """What a store says of an object."""

    size_bytes: int
    modified_ns: int  # since 1970, by the clock of the store: the end of the second in which it was written
    etag: str  # changes whenever the object does
    mark: str | None  # of the put that wrote it; lists do not say it


@dataclass(frozen=True)
class Fetched:
    """Bytes of an object."""

    data: Bytes  # a buffer of obstore, which is not copied
    info: ObjectInfo


class ObjectClient:
    """The objects below a URL such as `s3://bucket/prefix`."""

    def __init__(self, url: str) -> None:
        """
        Raises:
            UsageError: the URL names no bucket, or has a user or parameters.
            MissingDependency: obstore is not installed.
        """
        check_url(url)
        self.url = url = url.rstrip("/")
        environment = ((name, value) for name, value in os.environ.items() if name.startswith(_ENVIRONMENT))
        self._store = _opened(url, frozenset(environment))
        self.keeps_versions = False  # as the last put said: old versions of objects stay in the bucket

    def info(self, path: str) -> ObjectInfo | None:
        """What the store says of an object; None where there is none."""
        import obstore

        try:
            return self._tried(path, lambda: _info_of(obstore.get(self._store, path, options={"head": True})))
        except FileNotFoundError:
            return None

    def get(
        self,
        path: str,
        span: tuple[int, int] | None = None,
        *,
        unless: str | None = None,
        version: str | None = None,
    ) -> Fetched | None:
        """Read an object, or the part of it in a span.

        Args:
            unless: an etag: nothing is read if the object still has it.
            version: an etag that the object must have.

        Returns:
            None where the object has the etag `unless`, or has not the etag `version`.

        Raises:
            MissingFileError: there is no such object.
            RetroDBError: the store cannot be read.
        """
        from obstore.exceptions import NotModifiedError, PreconditionError

        options: GetOptions = {}
        if span is not None:
            options["range"] = span
        if unless is not None:
            options["if_none_match"] = unless
        if version is not None:
            options["if_match"] = version
        try:
            return self._tried(path, lambda: self._get(path, options, span))
        except FileNotFoundError:
            raise missing_file(path) from None
        except (NotModifiedError, PreconditionError):
            return None

    def put(self, path: str, source: bytes | Path, *, create: bool = False) -> str | None:
        """Write an object whole: bytes, or the content of a local file.

        Args:
            create: only if there is no such object. Then `source` is bytes.

        Returns:
            Its etag; None when another writer's object is there.

        Raises:
            RetroDBError: it could not be written. With a lost connection it may be there nevertheless.
        """
        from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError

        mark = uuid.uuid4().hex
        for pause in (*PAUSES_S, None):
            try:
                return self._put(path, source, mark, create=create)
            except (BaseError, FileNotFoundError) as error:
                is_open = isinstance(error, AlreadyExistsError | PreconditionError) or is_passing(error)
                problem = self.error_of(error, path)
                if not is_open:
                    raise problem from None
            info = self.info(path)
            if info is not None and self._is_own(path, info, mark, source):
                return info.etag
            if info is not None and create:
                return None
            if pause is None:
                raise problem
            time.sleep(pause)
        raise AssertionError("the last pause is None")

    def infos(self, prefix: str) -> dict[str, ObjectInfo]:
        """What a list says of all objects below a folder, sorted by path."""
        import obstore

        def listed() -> dict[str, ObjectInfo]:
            pages = obstore.list(self._store, prefix or None, chunk_size=1000)
            found = {item["path"]: _listed_info(item) for page in pages for item in page}
            return {path: found[path] for path in sorted(found) if path}  # the place itself may be an object

        try:
            return self._tried(prefix, listed)
        except FileNotFoundError:
            return {}

    def delete(self, paths: Sequence[str]) -> None:
        """Delete objects, if they are there: up to 1,000 in one request."""
        import obstore

        for start in range(0, len(paths), _DELETED_AT_ONCE):
            group = list(paths[start : start + _DELETED_AT_ONCE])
            try:
                self._tried(group[0], partial(obstore.delete, self._store, group))
            except FileNotFoundError:  # some stores end at an object that is not there
                for path in group if len(group) > 1 else ():
                    self.delete([path])

    def error_of(self, error: Exception, path: str) -> RetroDBError:
        """The error for a failed request."""
        return store_error(error, f"{self.url}/{path}" if path else self.url)

    def _tried(self, path: str, request: Callable[[], T]) -> T:
        """The answer to a request that may be made any number of times.

        Raises:
            FileNotFoundError, NotModifiedError, PreconditionError: as obstore.
            RetroDBError: every other failure.
        """
        from obstore.exceptions import BaseError, NotModifiedError, PreconditionError

        for pause in (*PAUSES_S, None):
            try:
                return request()
            except (NotModifiedError, PreconditionError):
                raise
            except FileNotFoundError as error:
                if is_missing_bucket(error):
                    raise self.error_of(error, "") from None
                raise
            except (BaseError, ShortBodyError) as error:
                if pause is None or not is_passing(error):
                    raise self.error_of(error, path) from None
            time.sleep(pause)
        raise AssertionError("the last pause is None")

    def _get(self, path: str, options: GetOptions, span: tuple[int, int] | None) -> Fetched:
        """One attempt. Raises what obstore raises, and ShortBodyError."""
        import obstore
        from obstore.exceptions import GenericError

        try:
            return _fetched(obstore.get(self._store, path, options=options), span)
        except GenericError as error:
            if status_of(error) != 416 or span is None or span[0] > 0:
                raise
            whole: GetOptions = {**options}  # an empty object has no part
            del whole["range"]
            return _fetched(obstore.get(self._store, path, options=whole), None)

    def _put(self, path: str, source: bytes | Path, mark: str, *, create: bool) -> str:
        """One attempt. Raises what obstore raises."""
        import obstore

        size = source.stat().st_size if isinstance(source, Path) else len(source)
        if isinstance(source, Path) and size <= PIECE_BYTES:
            source = source.read_bytes()
        result = obstore.put(
            self._store,
            path,
            source,
            attributes={_MARK: mark},
            mode="create" if create else "overwrite",
            use_multipart=isinstance(source, Path),
            chunk_size=max(PIECE_BYTES, -(-size // _MAX_PARTS)),
            max_concurrency=CONCURRENT_PIECES,
        )
        self.keeps_versions = result["version"] not in (None, "null")
        return result["e_tag"] or ""

    def _is_own(self, path: str, info: ObjectInfo, mark: str, source: bytes | Path) -> bool:
        """Whether an object is the one that a put with this mark wrote."""
        if info.mark is not None or not isinstance(source, bytes):
            return info.mark == mark
        fetched = self.get(path)  # the store keeps no marks
        return fetched is not None and fetched.data == source


@lru_cache(maxsize=16)
def _opened(url: str, environment: frozenset[tuple[str, str]]) -> ObjectStore:
    """The store of a URL, with its connections, once per process and environment."""
    try:
        from obstore.exceptions import BaseError
        from obstore.store import from_url
    except ImportError as error:
        raise MissingDependency(
            "object storage needs the extra 's3'", where=url, remedy="Install it: pip install 'retrodb[s3]'."
        ) from error
    variables = dict(environment)
    options = profile_options() if url.startswith("s3://") else {}
    endpoint = variables.get("AWS_ENDPOINT_URL_S3") or variables.get("AWS_ENDPOINT_URL") or options.get("endpoint", "")
    client: ClientConfig = {"connect_timeout": "5s", "timeout": "120s", "allow_http": endpoint.startswith("http://")}
    retry: RetryConfig = {
        "max_retries": STORE_RETRIES,
        "retry_timeout": timedelta(minutes=2),
        "backoff": {"init_backoff": timedelta(milliseconds=50), "max_backoff": timedelta(seconds=8)},
    }
    try:
        return from_url(url, client_options=client, retry_config=retry, **options)
    except (BaseError, ValueError):
        remedy = f"Set the variables of its account or region: {', '.join(_VARIABLES[url.partition('://')[0]])}."
        raise UsageError("the environment does not describe this object store", where=url, remedy=remedy) from None


def _info_of(result: GetResult) -> ObjectInfo:
    return _info(result.meta, result.attributes.get(_MARK))


def _info(meta: ObjectMeta, mark: str | None) -> ObjectInfo:
    modified_ns = int(meta["last_modified"].timestamp() + 1) * 1_000_000_000
    return ObjectInfo(meta["size"], modified_ns, meta["e_tag"] or "", mark)


def _listed_info(meta: ObjectMeta) -> ObjectInfo:
    """Lists of Azure have etags without their quotes."""
    info = _info(meta, None)
    return info if info.etag.startswith('"') else replace(info, etag=f'"{info.etag}"')


def _fetched(result: GetResult, span: tuple[int, int] | None) -> Fetched:
    """The bytes of an answer. Raises ShortBodyError when there are too few."""
    info, data = _info_of(result), result.bytes()
    start, end = span or (0, info.size_bytes)
    if len(data) != min(end, info.size_bytes) - start:
        raise ShortBodyError
    return Fetched(data, info)
