"""URLs of places in object stores. What needs no store is here, so that commands on directories load nothing of object stores."""

from __future__ import annotations

from retrodb.errors import UsageError

SCHEMES = ("s3", "gs", "az")


def is_object_url(path: str) -> bool:
    """Whether a path is the URL of a place in an object store."""
    scheme, separator, _ = path.partition("://")
    return bool(separator) and scheme in SCHEMES


def bucket_and_key(url: str) -> tuple[str, str]:
    """The URL of the bucket, and the rest: `s3://bucket/a/b` is `s3://bucket` and `a/b`."""
    scheme, _, rest = url.partition("://")
    bucket, _, key = rest.partition("/")
    return f"{scheme}://{bucket}", key


def check_url(url: str) -> None:
    """Raises UsageError unless a URL is of the form `s3://bucket/prefix`, without a user, a password or parameters."""
    scheme, _, rest = url.partition("://")
    bucket, _, prefix = rest.partition("/")
    if "@" in bucket or "?" in rest or "#" in rest:
        remedy = "Put credentials into the environment or a profile, and write only the bucket and a prefix."
        raise UsageError(
            "a URL of a database has no user, password or parameters", where=f"{scheme}://...", remedy=remedy
        )
    if not bucket or (prefix.rstrip("/") and {"", ".", ".."} & set(prefix.rstrip("/").split("/"))):
        remedy = f"Write {scheme}://BUCKET/PREFIX, such as {scheme}://my-bucket/my.retrodb."
        raise UsageError("this URL does not name a place in a bucket", where=url, remedy=remedy)
