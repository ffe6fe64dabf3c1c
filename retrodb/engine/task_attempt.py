"""An attempt at a task, in the process that makes it: its completion record is stored unless another attempt was first."""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Literal

from retrodb.engine.attempts import Attempt, StoredError
from retrodb.engine.blas_threads import one_blas_thread
from retrodb.engine.posted import LIBRARIES, PostedTasks, function_of, mark_verified, task_of
from retrodb.engine.run import Run, finished, record_path, recorded, run_is_open
from retrodb.engine.task import dump_record
from retrodb.errors import RetroDBError
from retrodb.store.storage import Storage, translate_os_error


@dataclass(frozen=True)
class Outcome:
    """How an attempt ended."""

    state: Literal["finished", "failed", "died", "returned"]
    error: StoredError | None = None
    log: str = ""  # what the task printed


@dataclass(frozen=True)
class ProcessShare:
    """What a process has for its tasks, and which functions it runs."""

    threads: int
    memory_bytes: int
    libraries: Sequence[str] = LIBRARIES
    worker: str = ""  # name

    @property
    def own_arguments(self) -> Mapping[str, object]:
        """What the process decides itself: arguments of the functions of tasks, or fields of them."""
        return {"threads": self.threads, "memory_bytes": self.memory_bytes, "gpus": 1}


def run_attempt(
    storage: Storage, posted: PostedTasks, number: int, attempt: Attempt, output: str, share: ProcessShare
) -> Outcome:
    """Make an attempt at the task with a number. What it prints says how long it took, and where an error comes from.

    Args:
        output: id that names the outputs.
    """
    started = time.monotonic()
    try:
        _run(storage, posted, number, output, share)
    except RetroDBError as error:
        traceback.print_exc()
        return Outcome("failed", StoredError.of(error))
    except OSError as error:
        traceback.print_exc()
        return Outcome("failed", StoredError.of(translate_os_error(error, str(error.filename or attempt.log_path))))
    except MemoryError as error:
        traceback.print_exc()
        remedy = "Give workers more --memory or fewer --workers, or the nodes of a Ray cluster more memory."
        return Outcome("failed", StoredError.of(RetroDBError(f"out of memory ({error})", remedy=remedy)))
    except Exception as error:  # noqa: BLE001 - a defect of ours: the command that waits says it
        traceback.print_exc()
        what, remedy = f"internal error: {type(error).__name__}: {error}", "Its log has the place."
        return Outcome("failed", StoredError.of(RetroDBError(what, where=attempt.log_path, remedy=remedy)))
    finally:
        print(f"{time.monotonic() - started:.3f} s", flush=True)
    return Outcome("finished")


def _run(storage: Storage, posted: PostedTasks, number: int, output: str, share: ProcessShare) -> None:
    """Run a task, and store its completion record unless another attempt was first."""
    with suppress(OSError):  # a machine without this folder finds no relative path, which the task says
        os.chdir(posted.folder)
    task = task_of(posted, number, share.libraries)
    run = Run(storage, posted.run, posted.command, posted.clock)
    is_to_verify = task.id in posted.verify
    if is_to_verify and recorded(run, task) is not None and finished(run, task) is None:
        storage.delete(record_path(run.id, task.id))  # its outputs are damaged, or were collected
    if recorded(run, task) is None:
        function = function_of(posted, share.own_arguments, share.libraries)
        started = time.monotonic()
        with one_blas_thread():
            record = function(storage, replace(task, id=output), run.clock)
        if not run_is_open(storage, run.id):
            return
        elapsed_s = round(time.monotonic() - started, 3)
        record = replace(record, task=task.id, worker=share.worker, elapsed_s=elapsed_s)
        storage.put_if_absent(record_path(run.id, task.id), dump_record(record))
    if is_to_verify:
        mark_verified(storage, posted, task.id)
