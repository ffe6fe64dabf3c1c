"""The least memory of each command, which is checked before the command reads or writes anything.

It is what the command needs on a small database: the library and what the command imports and compiles. What a large database
needs in addition is checked where it is known, still before any task starts: in the plan of a join, and by the engine, which
compares each group of tasks with `retrodb/engine/task_memory.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import wraps
from typing import Concatenate, ParamSpec, Protocol, TypeVar

from retrodb.engine.run import Engine
from retrodb.memory import MIB, PROCESS_MEMORY, require_memory, with_caches

P = ParamSpec("P")
R = TypeVar("R")

# The largest `base_mib` of the tasks that a command may run, or the peak of its own process on 6,000 chunks where that is more.
# fmt: off
LEAST_MIB: Mapping[str, int] = {
    "ingest": 155, "dedup": 155, "near_duplicates": 280, "tag": 180, "filter": 190, "undelete": 190,
    "embed": 205, "index": 190, "add_queries": 110, "add_packed_queries": 270,
    "neighbours": 270, "repair_neighbours": 270, "export": 255, "refresh_export": 255,
    "search": 140, "export_faiss": 160, "search_arrays": 140, "searcher": 140, "sql": 195, "leakage": 160, "eval_retrieval": 160,
    "exposure": 165, "diff": 70, "restore": 95, "check": 130, "repair": 280, "compact": 125, "purge": 230, "update": 280,
}
# fmt: on
"""By the name of the method of `Database`."""


_OTHER_COMMANDS = {
    "near_duplicates": "dedup",
    "repair_neighbours": "neighbours",
    "add_queries": "queries",
    "add_packed_queries": "queries",
    "refresh_export": "export",
    "export_faiss": "index",
    "repair": "check",
}
TASK_COMMANDS = (
    *("ingest", "dedup", "tag", "filter", "undelete", "embed", "index", "queries", "neighbours", "export"),
    *("exposure", "check", "compact", "purge", "space"),
)
"""The commands that have tasks for workers."""


def command_of(method: str) -> str:
    """The command of a method of `Database`."""
    return _OTHER_COMMANDS.get(method, method.replace("_", "-"))


class _HasEngine(Protocol):
    @property
    def _engine(self) -> Engine: ...


S = TypeVar("S", bound=_HasEngine)


def require_command(name: str, memory_bytes: int) -> None:
    """Raises NotEnoughMemory when a limit is below the least that a command needs."""
    if name in LEAST_MIB:
        require_memory(f"'{name.replace('_', '-')}'", with_caches(LEAST_MIB[name] * MIB), memory_bytes)


def limited(method: Callable[Concatenate[S, P], R]) -> Callable[Concatenate[S, P], R]:
    """The method, which begins with the memory limit of its database.

    Raises:
        NotEnoughMemory: the limit is below the least that the command needs.
    """
    name = method.__name__

    @wraps(method)
    def begun(self: S, /, *args: P.args, **kwargs: P.kwargs) -> R:
        engine = self._engine
        require_command(name, engine.memory_limit)
        PROCESS_MEMORY.begin(engine.memory_limit)
        with engine.running(command_of(name)):  # an update calls other methods
            return method(self, *args, **kwargs)

    return begun
