"""How many files this process may have open: a search or an export over many shards maps several files of each."""

from __future__ import annotations

import sys
from contextlib import suppress

_MOST = 1 << 20  # where the system sets no hard limit


def raise_limit_of_open_files() -> None:
    """Raise the soft limit of this process, and of those that it starts, to the hard limit: no privilege is needed for it.

    The usual soft limit of 1,024 is there for programs that call `select`, and is less than the files of a few hundred shards.
    """
    if sys.platform == "win32":  # has no such limit
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST if hard == resource.RLIM_INFINITY else hard
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(ValueError, OSError):  # some systems allow less than they say
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
