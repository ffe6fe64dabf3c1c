"""`retrodb runs list | show | retry | cancel | commit`"""

from __future__ import annotations

import os
import shlex
from typing import TYPE_CHECKING

import click

from retrodb import errors

from .options import (
    READING_EXITS,
    WRITING_EXITS,
    Command,
    Session,
    database_argument,
    json_option,
    open_database,
    pass_session,
)
from .output import format_value

if TYPE_CHECKING:
    from retrodb.maintain.run_progress import RunProgress


def progress_line(progress: RunProgress) -> str:
    """How far a run is, in one line."""
    if not progress.num_tasks:
        return f"run {progress.run}: no tasks are posted"
    rate = "" if progress.tasks_per_s is None else f", {format_value('tasks_per_s', progress.tasks_per_s)} a second"
    left = "" if progress.left_s is None else f", {format_value('left_s', progress.left_s)} left"
    done = int(100 * progress.done_fraction + 1e-9)  # 100 when all have ended
    return (
        f"run {progress.run}, {', '.join(progress.stages)}: {format_value('num_finished', progress.num_finished)} of "
        f"{format_value('num_tasks', progress.num_tasks)} tasks have ended ({done}% of the work){rate}{left}"
    )


_run_argument = click.argument("run", metavar="RUN")


@click.group()
def command() -> None:
    """List, inspect, retry, cancel or commit runs. A run is a command that has not committed yet.

    RUN is the id of a run, or its beginning.
    """


@command.command("list", cls=Command, example="retrodb runs list my.retrodb", exits=READING_EXITS)
@database_argument
@json_option
@pass_session
def list_command(session: Session, database: str) -> None:
    """List the runs of DB that have not committed: tasks that are finished and running, and workers."""
    session.output.rows(open_database(session, database).runs(), empty="All runs have committed.")


@command.command("show", cls=Command, example="retrodb runs show my.retrodb 1a2b", exits=READING_EXITS)
@database_argument
@_run_argument
@click.option("--log", "task", metavar="TASK", help="Print what the attempts at this task printed, instead.")
@json_option
@pass_session
def show_command(session: Session, database: str, run: str, task: str | None) -> None:
    """List the attempts at the tasks of RUN: who has them, how long they take, and why they failed.

    The last line says how many of the tasks that are posted now have ended, their rate, and the time that is left at this rate.
    """
    db = open_database(session, database)
    if task is not None:
        session.output.result(db.run_log(run, task), lambda log: log.text)
    else:
        attempts, progress = db.show_run(run), db.run_progress(run)  # both, before the run may commit
        session.output.rows(attempts, empty="No worker has had a task of this run.")
        session.output.result(progress, progress_line)


@command.command("retry", cls=Command, example="retrodb runs retry my.retrodb 1a2b", exits=WRITING_EXITS)
@database_argument
@_run_argument
@json_option
@pass_session
def retry_command(session: Session, database: str, run: str) -> None:
    """Allow further attempts at tasks of RUN that failed too often, or lost too many workers."""
    session.output.result(open_database(session, database).retry_run(run))


@command.command("cancel", cls=Command, example="retrodb runs cancel my.retrodb 1a2b", exits=WRITING_EXITS)
@database_argument
@_run_argument
@json_option
@pass_session
def cancel_command(session: Session, database: str, run: str) -> None:
    """End RUN. Workers stop its tasks, and the command that waits for it ends. The same command again continues it."""
    session.output.result(open_database(session, database).cancel_run(run))


@command.command("commit", cls=Command, example="retrodb runs commit my.retrodb 1a2b", exits=WRITING_EXITS)
@database_argument
@_run_argument
@pass_session
def commit_command(session: Session, database: str, run: str) -> int:
    """Run the command of RUN again, whose process has ended: it waits for the tasks that are left, and commits."""
    from .main import main

    arguments, folder = open_database(session, database).command_of_run(run)
    try:
        os.chdir(folder)
    except OSError as error:
        what, remedy = f"no such folder ({error.strerror})", "Run the command yourself, with paths of this machine."
        raise errors.UsageError(what, where=folder, remedy=remedy) from error
    session.output.note(f"retrodb {shlex.join(arguments)}")
    return main(arguments)
