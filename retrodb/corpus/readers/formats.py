"""Which format a file is, from its first bytes and its name."""

from __future__ import annotations

from pathlib import PurePosixPath

import orjson

from retrodb.corpus.streams import COMPRESSION_SUFFIXES

BINARY_MAGIC = {
    b"PAR1": "parquet",
    b"ARROW1": "hf-arrow",
    b"\xff\xff\xff\xff": "hf-arrow",
    b"WARC/": "warc",
    b"filedesc:": "arc",
}
BY_SUFFIX = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
    ".arrow": "hf-arrow",
    ".csv": "csv",
    ".tsv": "tsv",
    ".md": "markdown",
    ".markdown": "markdown",
    ".txt": "text",
    ".text": "text",
    ".rst": "text",
    ".html": "html",
    ".htm": "html",
    ".xhtml": "html",
    ".warc": "warc",
    ".wet": "wet",
    ".wat": "warc",
    ".arc": "arc",
}
TAR_MAGIC_AT = 257  # "ustar" stands here in every tar since POSIX.1-1988


def is_tar(head: bytes) -> bool:
    """Whether a file that begins so is a tar archive."""
    return head[TAR_MAGIC_AT : TAR_MAGIC_AT + 5] == b"ustar"


def detect_format(head: bytes, name: str) -> str:
    """A name of `READERS`, or "unknown".

    First what the bytes say beyond doubt (Parquet, Arrow, WARC, ARC), then the name's suffix (that of a compression
    put aside), then what the bytes look like: a JSON object or array, an HTML page, UTF-8 text.

    Args:
        head: the first decompressed bytes, 64 KiB or the whole file.
    """
    for magic, found in BINARY_MAGIC.items():
        if head.startswith(magic):
            return found
    suffix = _suffix_of(name)
    if suffix == "jsonl":
        return "dolma" if _is_dolma(head) else "jsonl"
    return suffix or _looks_like(head.removeprefix(b"\xef\xbb\xbf").lstrip())


def _suffix_of(name: str) -> str | None:
    path = PurePosixPath(name.lower())
    while path.suffix in COMPRESSION_SUFFIXES:
        path = path.with_suffix("")
    return BY_SUFFIX.get(path.suffix)


def _looks_like(head: bytes) -> str:
    if head.startswith(b"["):
        return "json"
    if head.startswith(b"{"):
        return _json_kind(head)
    if head[:200].lower().startswith((b"<!doctype html", b"<html")):
        return "html"
    return "text" if _is_utf8(head) else "unknown"


def _json_kind(head: bytes) -> str:
    """Lines of objects, unless the first line is no whole object: then one object over several lines."""
    first, newline, _ = head.partition(b"\n")
    if newline and not _first_object(first):
        return "json"
    return "dolma" if _is_dolma(head) else "jsonl"


def _first_object(line: bytes) -> dict[str, object]:
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError:
        return {}
    return value if isinstance(value, dict) else {}


def _is_dolma(head: bytes) -> bool:
    return {"id", "text", "source", "added"} <= _first_object(head.lstrip().partition(b"\n")[0]).keys()


def _is_utf8(head: bytes) -> bool:
    if b"\0" in head:
        return False
    try:
        head.decode()
    except UnicodeDecodeError as error:
        return len(head) - error.start < 4 and "end of data" in error.reason  # a character cut by the head's end
    return True
