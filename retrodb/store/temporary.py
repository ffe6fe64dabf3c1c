"""Names of unfinished files: each says which process of which machine writes it, so that others know when it was left behind."""

from __future__ import annotations

import os
import re
import socket
import uuid

TEMPORARY = "tmp"
"""Folder of unfinished files; collection empties it."""
_TEMPORARY_NAME = re.compile(rf"{TEMPORARY}/[0-9a-f]{{32}}-([A-Za-z0-9]*)\.(\d+)-.+")
_HOST = re.sub(r"[^A-Za-z0-9]", "", socket.gethostname())


def this_machine() -> str:
    """The name of this machine, in letters and digits."""
    return _HOST


def is_temporary(path: str) -> bool:
    """Whether a path is that of an unfinished file, which names the process that writes it."""
    return _TEMPORARY_NAME.fullmatch(path) is not None


def is_abandoned(path: str) -> bool:
    """Whether an unfinished file of this machine belongs to a process that has ended."""
    match = _TEMPORARY_NAME.fullmatch(path)
    return match is not None and match[1] == _HOST and not _is_running(int(match[2]))


def temporary_name(name: str) -> str:
    """A new name for an unfinished file, with the machine and the process that it belongs to."""
    return f"{uuid.uuid4().hex}-{_HOST}.{os.getpid()}-{name}"


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        return True
    return True
