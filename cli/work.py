"""`retrodb work`"""

from __future__ import annotations

from datetime import timedelta

import click

from retrodb import errors

from .option_types import duration
from .options import (
    READING_EXITS,
    Command,
    Session,
    database_argument,
    json_option,
    memory_option,
    open_database,
    pass_session,
    workers_option,
)


@click.command(
    cls=Command,
    example="retrodb work my.retrodb --stages embed,neighbours --idle-exit 10m --grace 2m",
    exits=(*READING_EXITS, errors.EXIT_NO_SPACE, errors.EXIT_REQUEUE),
)
@database_argument
@click.option(
    "--run", metavar="ID", help="Work on this run only. The beginning of its id is enough.  [default: all runs]"
)
@click.option(
    "--stages",
    metavar="NAMES",
    help="Take tasks of these commands only, separated by commas, such as embed,neighbours.  [default: all]",
)
@click.option(
    "--gpu", is_flag=True, help="Take only tasks that can use a GPU. Workers without it take none that need one."
)
@click.option(
    "--allow-python",
    is_flag=True,
    help="Take tasks of taggers that are Python functions. Then everybody who can write to DB can run any code here.",
)
@workers_option
@memory_option
@click.option(
    "--idle-exit", type=duration, metavar="TIME", help="End after this time without a task.  [default: wait for tasks]"
)
@click.option(
    "--grace",
    type=duration,
    default="0s",
    show_default=True,
    metavar="TIME",
    help="Time to finish tasks after SIGTERM. Then they are given back, and other workers begin them again.",
)
@json_option
@pass_session
def command(
    session: Session,
    database: str,
    run: str | None,
    stages: str | None,
    gpu: bool,
    allow_python: bool,
    workers: int | None,
    idle_exit: timedelta | None,
    grace: timedelta,
) -> int:
    """Run tasks of DB that commands with '--engine workers' have posted.

    Start as many workers as you like, on any machine that reaches DB. They may come and go at any time.
    """
    result = open_database(session, database).work(
        run=run,
        stages=[name.strip() for name in stages.split(",")] if stages is not None else (),
        gpu=gpu,
        allow_python=allow_python,
        workers=workers,
        idle_exit_s=None if idle_exit is None else idle_exit.total_seconds(),
        grace_s=grace.total_seconds(),
    )
    session.output.result(result)
    return result.exit_code
