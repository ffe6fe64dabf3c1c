"""Tasks that run before a plan is known. What they find becomes part of the plan, and nothing is left of their run."""

from __future__ import annotations

from collections.abc import Sequence

from retrodb.engine.run import Engine, passing_run
from retrodb.engine.task import P, R, Task, TaskFunction
from retrodb.stages.context import Context


def run_planning_tasks(
    context: Context,
    command: str,
    tasks: Sequence[Task[P, R]],
    function: TaskFunction[P, R],
    *,
    unit: str,
    engine: Engine | None = None,
) -> list[R]:
    """The results of tasks, in their order. Interrupted, the same command continues with the tasks that are not finished.

    Args:
        command: names the run.
        unit: of the tasks' weights, for progress.
        engine: another one than the context's.
    """
    if not tasks:
        return []
    with passing_run(context.storage, command, [task.id for task in tasks], context.clock) as run:
        records = (engine or context.engine).run(run, tasks, function, context.progress, unit=unit)
    return [record.result for record in records]
