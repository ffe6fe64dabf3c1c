"""Names of input files: as text that can be stored and shown, and compared with patterns."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from functools import lru_cache

from retrodb.errors import UsageError


def escape_name(name: str) -> str:
    """The name of a file as text that UTF-8 can store: a byte that is not UTF-8 is written as ``\\xe9``.

    Python gives such bytes as lone surrogates (PEP 383).
    """
    if name.isascii():
        return name
    try:
        return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # another lone surrogate
        return name.encode("utf-8", "backslashreplace").decode()


def matches_pattern(name: str, pattern: str) -> bool:
    """Whether a path below an input, or a folder that contains it, matches a pattern.

    A pattern without "/" matches in every folder: "*.md", "node_modules". A pattern with "/" begins at the input: "docs/*.md",
    "/index.md". `*` and `?` do not match "/"; `**` matches any folders.

    Raises:
        UsageError: the pattern is empty.
    """
    parts = _pattern_parts(pattern)
    names = name.split("/")
    return any(_match(names[:length], parts) for length in range(1, len(names) + 1))


def matches_glob(name: str, pattern: str) -> bool:
    """Whether a path matches a pattern as a whole: `*` and `?` do not match "/", `**` matches any folders."""
    return _match(name.split("/"), pattern.split("/"))


@lru_cache(maxsize=64)
def _pattern_parts(pattern: str) -> tuple[str, ...]:
    stripped = pattern.removeprefix("./").strip("/")
    if not stripped:
        raise UsageError(f"the pattern '{pattern}' matches no file", remedy="Write a pattern such as '*.md'.")
    is_anchored = "/" in pattern.rstrip("/")
    parts: list[str] = [] if is_anchored else ["**"]
    for part in stripped.split("/"):
        if part != "**" or parts[-1:] != ["**"]:
            parts.append(part)
    return tuple(parts)


def _match(names: Sequence[str], parts: Sequence[str]) -> bool:
    if not parts:
        return not names
    if parts[0] == "**":
        return any(_match(names[skipped:], parts[1:]) for skipped in range(len(names) + 1))
    return bool(names) and fnmatchcase(names[0], parts[0]) and _match(names[1:], parts[1:])
