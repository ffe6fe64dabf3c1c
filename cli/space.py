"""`retrodb space list | default | drop`"""

from __future__ import annotations

import click

from .options import READING_EXITS, WRITING_EXITS, Command, Session, changes, database_argument, open_database, reads


@click.group()
def command() -> None:
    """List vector spaces, change the default one, drop one. 'retrodb embed --space NAME' fills a new one."""


@command.command("list", cls=Command, example="retrodb space list my.retrodb", exits=READING_EXITS)
@database_argument
@reads
def list_command(session: Session, database: str, as_of: int | None) -> None:
    """List the spaces of DB."""
    session.output.rows(open_database(session, database).spaces(as_of=as_of))


@command.command("default", cls=Command, example="retrodb space default my.retrodb bge", exits=WRITING_EXITS)
@database_argument
@click.argument("space", metavar="NAME")
@changes
def default_command(session: Session, database: str, space: str, dry_run: bool) -> None:
    """Make NAME the space that is used when none is named, in one commit. It has to be embedded and indexed whole."""
    session.output.result(open_database(session, database).set_default_space(space, dry_run=dry_run))


@command.command("drop", cls=Command, example="retrodb space drop my.retrodb old", exits=WRITING_EXITS)
@database_argument
@click.argument("space", metavar="NAME")
@click.option("--with-tables", is_flag=True, help="Also the neighbour tables that were computed in it.")
@changes
def drop_command(session: Session, database: str, space: str, with_tables: bool, dry_run: bool) -> None:
    """Take NAME out of DB. 'retrodb gc' frees its files; older snapshots still have it until they expire."""
    db = open_database(session, database)
    session.output.result(db.drop_space(space, with_tables=with_tables, dry_run=dry_run))
