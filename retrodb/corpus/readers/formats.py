"""The format of a file, from its first bytes and its name."""

from __future__ import annotations

import codecs
from pathlib import PurePosixPath

import orjson

from retrodb.corpus.streams import BYTE_ORDER_MARK, COMPRESSION_SUFFIXES

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
TEXT_FORMATS = ("jsonl", "json", "dolma", "csv", "tsv", "text", "markdown", "html")
TAR_MAGIC_OFFSET = 257  # of "ustar" in every tar file since POSIX.1-1988


def is_tar(head: bytes) -> bool:
    """Whether a file with these first bytes is a tar archive."""
    return head[TAR_MAGIC_OFFSET : TAR_MAGIC_OFFSET + 5] == b"ustar"


def is_binary_content(head: bytes) -> bool:
    """Whether no text in UTF-8 or UTF-16 begins with these bytes."""
    return b"\0" in head and not head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))


def detect_format(head: bytes, name: str) -> str:
    """A name of `READERS`, or "unknown".

    The magic bytes of Parquet, Arrow, WARC and ARC decide first. Then the suffix of the name decides; the suffix of a
    compression is ignored. Then the bytes decide: a JSON object or array, an HTML page, or UTF-8 text.

    Args:
        head: the first decompressed bytes, 64 KiB or the whole file.
    """
    for magic, format_name in BINARY_MAGIC.items():
        if head.startswith(magic):
            return format_name
    by_suffix = _format_of_suffix(name)
    if by_suffix == "jsonl":
        return "dolma" if _is_dolma(head) else "jsonl"
    return by_suffix or _format_of_content(head.removeprefix(BYTE_ORDER_MARK).lstrip())


def _format_of_suffix(name: str) -> str | None:
    path = PurePosixPath(name.lower())
    while path.suffix in COMPRESSION_SUFFIXES:
        path = path.with_suffix("")
    return BY_SUFFIX.get(path.suffix)


def _format_of_content(head: bytes) -> str:
    if head.startswith(b"["):
        return "json"
    if head.startswith(b"{"):
        return _json_kind(head)
    if head[:200].lower().startswith((b"<!doctype html", b"<html")):
        return "html"
    return "text" if _is_utf8(head) else "unknown"


def _json_kind(head: bytes) -> str:
    """JSON Lines, unless the first line is not a whole object: then the file is one object on several lines."""
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
        return len(head) - error.start < 4 and "end of data" in error.reason  # the end of the head cuts a character
    return True
