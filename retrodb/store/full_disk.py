"""A full disk: how it is recognised, whatever library reported it, and what the user is told."""

from __future__ import annotations

import errno
import re

from retrodb.errors import NoSpaceError

_IN_WORDS = re.compile(
    r"no space left on device|disk quota exceeded|\d+ requested and \d+ written|disk full", re.IGNORECASE
)
"""How libraries report it in the text of an error: Arrow, DuckDB, FAISS; NumPy counts the items that it wrote."""


def is_disk_full(error: BaseException | None) -> bool:
    """Whether an error, or the one that caused it, says that the disk is full."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if _IN_WORDS.search(str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False


def no_space(where: str) -> NoSpaceError:
    """The error for a full disk."""
    return NoSpaceError(
        "no space left on the device; nothing was committed",
        where=where,
        remedy="Free some space and run the same command again: finished work is kept.",
    )
