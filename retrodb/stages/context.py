"""What every stage is given: the database's view, an engine, and a place to show progress."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from retrodb.encode.threads import available_cpus
from retrodb.engine.local import LocalEngine
from retrodb.engine.progress import Progress
from retrodb.engine.run import Engine
from retrodb.engine.task import P, R, Task
from retrodb.engine.task_memory import process_bytes
from retrodb.format.settings import Settings, parse_settings
from retrodb.stages.planned_view import share_view
from retrodb.store.snapshots import read_as_of
from retrodb.store.storage import Storage
from retrodb.view.view import View

_CHUNKS_OF_ONE_PROCESS = 1 << 22


@dataclass(frozen=True)
class Context:
    """Where a stage works and with what; none of it changes the bytes of a result."""

    storage: Storage
    engine: Engine = field(default_factory=LocalEngine)
    progress: Progress = field(default_factory=Progress)
    clock: str | None = None  # time of new runs; None reads the machine's clock, once a run

    @property
    def memory_limit(self) -> int:
        """Limit of the anonymous memory of all processes of the command together, in bytes."""
        return self.engine.memory_limit

    @property
    def num_workers(self) -> int:
        """Cores that this machine's part of the work may keep busy."""
        return self.engine.workers if isinstance(self.engine, LocalEngine) else available_cpus()

    def threads_for(self, tasks: Sequence[Task[P, R]], extra_bytes: int = 0, engine: Engine | None = None) -> int:
        """Threads of a process that runs some of the tasks, next to as many as the memory is for: no core idle, none shared.

        Args:
            engine: that runs the tasks, if it is not that of this context.
        """
        processes = (engine or self.engine).num_processes(tasks, process_bytes(tasks, extra_bytes))
        return max(1, self.num_workers // max(1, processes))

    def engine_for_chunks(self, num_chunks: int) -> Engine:
        """The engine, with one process for so few chunks that to start more, about a second, would take longer."""
        return self.engine.here() if num_chunks <= _CHUNKS_OF_ONE_PROCESS else self.engine

    def settings(self) -> Settings:
        """The database's settings. Raises MissingFileError, FormatVersionError, DamagedFileError."""
        return parse_settings(self.storage.read("retrodb.toml").decode(errors="replace"), where="retrodb.toml")

    def view(self, as_of: int | str | None = None) -> View:
        """The newest snapshot, or an older one by its number or the name of a pin."""
        snapshot = read_as_of(self.storage, as_of)
        return share_view(View(self.storage, self.settings(), snapshot))
