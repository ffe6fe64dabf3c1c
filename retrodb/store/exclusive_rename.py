"""Giving a finished file its name unless the name is taken: the one question that is ever asked of two writers.

A hard link answers it on most file systems, `renameat2` with RENAME_NOREPLACE (Linux) on the others. Which one is decided by
the error of each call, because a folder may be a mount of its own.
"""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path

from retrodb.errors import RetroDBError

# A file system without hard links: FAT and exFAT give EPERM, FUSE and network ones ENOTSUP or ENOSYS, Android EACCES.
_NO_HARD_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK, errno.EACCES}
_NO_EXCLUSIVE_RENAME = {errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTSUP}
_AT_FDCWD, _RENAME_NOREPLACE = -100, 1


def rename_if_absent(temporary: Path, target: Path) -> bool:
    """Make `target` the name of a finished file, unless it exists; afterwards `temporary` may still be a second name.

    Returns:
        Whether this call did it. A network file system may report "exists" of its own success: then the file is the same.

    Raises:
        OSError: for any other failure.
        RetroDBError: when the file system has neither way; names its type.
    """
    try:
        os.link(temporary, target)
    except FileExistsError:
        return os.path.samefile(temporary, target)
    except OSError as error:
        if error.errno not in _NO_HARD_LINKS:
            raise
        return _rename_exclusively(temporary, target, error)
    return True


def _rename_exclusively(temporary: Path, target: Path, no_link: OSError) -> bool:
    if os.path.lexists(target):
        return False
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    paths = os.fsencode(temporary), os.fsencode(target)
    if rename is None:
        code = errno.ENOSYS
    elif rename(_AT_FDCWD, paths[0], _AT_FDCWD, paths[1], _RENAME_NOREPLACE) == 0:
        return True
    else:
        code = ctypes.get_errno()
    if code == errno.EEXIST:
        return not temporary.exists()  # gone: it was renamed, and the answer was lost
    if code in _NO_EXCLUSIVE_RENAME:
        if no_link.errno == errno.EACCES:
            raise no_link
        raise RetroDBError(
            f"the file system ({file_system_of(target)}) has neither hard links nor an exclusive rename, so that two "
            "writers could overwrite each other",
            where=str(target.parent),
            remedy="Put the database on another file system, such as ext4, XFS, btrfs, APFS or NFS.",
        ) from no_link
    raise OSError(code, os.strerror(code), str(target))


def file_system_of(path: Path) -> str:
    """The type of the file system that a path lies on, such as `vfat`; "unknown" where the system does not say."""
    try:
        mounts = Path("/proc/self/mounts").read_text().splitlines()
    except OSError:
        return "unknown"
    real = os.path.realpath(path)
    types = {fields[1].encode().decode("unicode_escape"): fields[2] for fields in map(str.split, mounts)}
    holding = [point for point in types if os.path.commonpath([point, real]) == point]
    return types[max(holding, key=len)] if holding else "unknown"
