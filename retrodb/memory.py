"""The memory limit of a command: one definition, for every command.

`--memory` (in Python: `memory_bytes` of `retrodb.open`) limits the anonymous memory of all processes of a command together.
Pages of mapped files are not anonymous: the system drops them when it needs memory, so they do not count. Units are powers of
two. A command keeps the limit by running fewer processes, and with smaller blocks and caches, or it refuses to start and
names the least that it needs. The limit changes no byte of a result and no id of a task.

The memory of the machine that searches a database later is something else: `IndexParams.search_memory_bytes`, which chooses
the type of an index and is stored with it.
"""

from __future__ import annotations

import os
from pathlib import Path

from retrodb.errors import NotEnoughMemory

MIB = 1 << 20
_CGROUPS, _OWN_GROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
_UNLIMITED = 1 << 60  # a limit that a container reports although it has none is at least this
CACHE_FRACTION = (
    8  # of the memory of a process, one part of so many is for what it keeps of shards that it may need again
)


def default_memory() -> int:
    """The limit of a command that is given none: half of the machine's memory, or of the container's.

    The other half is left to the page cache, through which all mapped files are read.
    """
    return machine_memory() // 2


def machine_memory() -> int:
    """Memory of this machine in bytes, or the limit of the container if that is less."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([physical, *_container_limits()])


def _container_limits() -> list[int]:
    """The limits of the control groups that this process is in; none where there are no control groups."""
    try:
        groups = [line.split(":", 2)[1:] for line in _OWN_GROUPS.read_text().splitlines()]
    except OSError:
        return []
    limits = []
    for controllers, path in groups:
        if controllers == "":
            root, name = _CGROUPS, "memory.max"
        elif "memory" in controllers.split(","):
            root, name = _CGROUPS / "memory", "memory.limit_in_bytes"
        else:
            continue
        group = root / path.lstrip("/")
        limits += [_limit_in(folder / name) for folder in (group, *group.parents) if folder.is_relative_to(root)]
    return [limit for limit in limits if limit < _UNLIMITED]


def _limit_in(file: Path) -> int:
    try:
        text = file.read_text().strip()
    except OSError:
        return _UNLIMITED
    return int(text) if text.isdecimal() else _UNLIMITED


def anonymous_bytes(process: int | str = "self") -> int:
    """Anonymous memory of a process in bytes; 0 where the system does not say, or the process has ended."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:")), 0)


def cache_bytes_of(memory_bytes: int) -> int:
    """The part of a process's memory that its caches may use."""
    return memory_bytes // CACHE_FRACTION


def with_caches(needed_bytes: int) -> int:
    """The memory of a process whose work needs so many bytes next to its caches."""
    return -(-needed_bytes * CACHE_FRACTION // (CACHE_FRACTION - 1))


def size_text(size_bytes: int) -> str:
    """A size as `--memory` takes it, rounded up to MiB."""
    return f"{-(-size_bytes // MIB)}MiB"


def require_memory(what: str, least_bytes: int, memory_bytes: int) -> None:
    """Raises NotEnoughMemory when a limit is below the least that something needs."""
    if memory_bytes < least_bytes:
        raise NotEnoughMemory(
            f"{what} needs at least {size_text(least_bytes)} of memory, and the limit is {_rounded_down(memory_bytes)}",
            remedy=f"Give --memory {size_text(least_bytes)} or more.",
        )


def _rounded_down(size_bytes: int) -> str:
    return f"{size_bytes // MIB}MiB" if size_bytes >= MIB else f"{size_bytes:,} bytes"


class ProcessMemory:
    """How much memory this process may use; set when a command or a worker begins."""

    def __init__(self) -> None:
        self._limit_bytes: int | None = None
        self._begun_bytes = 0  # anonymous memory when the limit was set

    @property
    def limit_bytes(self) -> int:
        """The limit of this process."""
        if self._limit_bytes is None:
            self._limit_bytes = default_memory()
        return self._limit_bytes

    def begin(self, limit_bytes: int) -> None:
        """Set the limit of this process."""
        self._limit_bytes, self._begun_bytes = limit_bytes, anonymous_bytes()

    @property
    def grown_bytes(self) -> int:
        """Anonymous memory that this process took since its limit was set."""
        return max(0, anonymous_bytes() - self._begun_bytes)

    @property
    def cache_bytes(self) -> int:
        """The limit of all caches of this process together."""
        return cache_bytes_of(self.limit_bytes)


PROCESS_MEMORY = ProcessMemory()
"""The limit of this process: the command's, or the worker's part of it."""
