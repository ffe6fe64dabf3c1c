"""The advisory lock: it spares two people the same hours of work and protects nothing.

Correctness rests on the commit alone; a lost or stale lock does no harm.
"""

from __future__ import annotations

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

    if not isinstance(storage, LocalStorage):  # object stores have no locks, and need none
        yield
        return
    folder = storage.root / "locks"
    try:
        folder.mkdir(exist_ok=True)
        lock = FileLock(folder / f"{re.sub(r'[^A-Za-z0-9._-]', '_', name)}.lock")
        lock.acquire(timeout=0)
    except Timeout as error:
        raise LockedError(
            f"another command is at work: {_holder(folder, name)}",
            where=storage.url,
            remedy="Wait for it to end, then run the same command again.",
        ) from error
    except OSError as error:
        raise translate_os_error(error, str(folder)) from error
    try:
        _holder_path(folder, name).write_text(
            json.dumps({"command": command, "pid": os.getpid(), "host": socket.gethostname()})
        )
        yield
    finally:
        _holder_path(folder, name).unlink(missing_ok=True)
        lock.release()


def _holder_path(folder: Path, name: str) -> Path:
    return folder / f"{re.sub(r'[^A-Za-z0-9._-]', '_', name)}.json"


def _holder(folder: Path, name: str) -> str:
    try:
        who = json.loads(_holder_path(folder, name).read_text())
        return f"{who['command']} (process {who['pid']} on {who['host']})"
    except (OSError, ValueError, KeyError):  # the holder is just starting or ending
        return name
