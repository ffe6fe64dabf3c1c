"""The advisory lock: it keeps two people from doing the same work at the same time.

Correctness depends on the commit alone; a lost or stale lock does no harm.
"""

from __future__ import annotations

import errno
import json
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from retrodb.errors import LockedError
from retrodb.store.storage import LocalStorage, Storage, translate_os_error


@contextmanager
def advisory_lock(storage: Storage, name: str, command: str) -> Iterator[None]:
    """Hold the lock of one resource, such as `ingest-wikipedia`, while the block runs.

    Raises:
        LockedError: at once, when another process holds it, naming that process.
    """
    from filelock import FileLock, Timeout

    if not isinstance(storage, LocalStorage):  # object stores have no locks and need none
        yield
        return
    folder = storage.root / "locks"
    holder = folder / f"{_file_name(name)}.json"
    lock = FileLock(folder / f"{_file_name(name)}.lock")
    try:
        folder.mkdir(exist_ok=True)
        lock.acquire(timeout=0)
        holder.write_text(json.dumps({"command": command, "pid": os.getpid(), "host": socket.gethostname()}))
    except Timeout as error:
        raise LockedError(
            f"another command is running: {_describe(holder) or name}",
            where=storage.url,
            remedy="Wait for it to end, then run the same command again.",
        ) from error
    except OSError as error:
        lock.release()
        if error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise translate_os_error(error, str(folder)) from error
        yield  # nobody can write here, so there is nothing to wait for: dry runs read on, and a real write says why it fails
        return
    try:
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()


def _file_name(name: str) -> str:
    """A file name for any resource; two resources that share one only wait for each other."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", name)[:200]


def _describe(holder: Path) -> str | None:
    try:
        who = json.loads(holder.read_text())
        return f"{who['command']} (process {who['pid']} on {who['host']})"
    except (OSError, ValueError, KeyError):  # the holder is just starting or ending
        return None
