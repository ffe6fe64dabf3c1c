"""The 32-bit numbers of trainers' formats: what does not fit is refused before anything is written."""

from __future__ import annotations

from retrodb.errors import UsageError

INT32_MAX = (1 << 31) - 1
UINT32_MAX = (1 << 32) - 1


def check_count(what: str, count: int, limit: int, to: str, remedy: str) -> None:
    """Refuse a count that a number of a format cannot hold.

    Args:
        what: the things that are counted, in the plural.
        limit: the largest number that fits.
        to: the format.

    Raises:
        UsageError: names the count and the limit.
    """
    if count > limit:
        raise UsageError(f"{count:,} {what}, but numbers of the format '{to}' end at {limit:,}", remedy=remedy)
