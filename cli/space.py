"""`retrodb space list | default | drop`"""

from __future__ import annotations

import click

from .options import (
    READING_EXITS,
    WRITING_EXITS,
    Command,
    Session,
    commit_options,
    database_argument,
    open_database,
    snapshot_options,
)


@click.group()
def command() -> None:
    """List vector spaces, set the default space, or delete a space. 'retrodb embed --space NAME' creates one."""


@command.command("list", cls=Command, example="retrodb space list my.retrodb", exits=READING_EXITS)
@database_argument
@snapshot_options
def list_command(session: Session, database: str, as_of: int | str | None) -> None:
    """List the vector spaces of DB."""
    session.output.rows(
        open_database(session, database).spaces(as_of=as_of),
        empty="There are no spaces yet. 'retrodb embed' fills one.",
    )


@command.command("default", cls=Command, example="retrodb space default my.retrodb bge", exits=WRITING_EXITS)
@database_argument
@click.argument("space", metavar="NAME")
@commit_options
def default_command(session: Session, database: str, space: str, dry_run: bool) -> None:
    """Make NAME the default space of DB. It must be completely embedded and indexed."""
    session.output.result(open_database(session, database).set_default_space(space, dry_run=dry_run))


@command.command("drop", cls=Command, example="retrodb space drop my.retrodb old", exits=WRITING_EXITS)
@database_argument
@click.argument("space", metavar="NAME")
@click.option("--with-tables", is_flag=True, help="Also delete the neighbour tables that were computed in this space.")
@commit_options
def drop_command(session: Session, database: str, space: str, with_tables: bool, dry_run: bool) -> None:
    """Delete the space NAME from DB. Older snapshots keep it until they expire. 'retrodb gc' then frees the disk space."""
    db = open_database(session, database)
    session.output.result(db.drop_space(space, with_tables=with_tables, dry_run=dry_run))
