"""`retrodb queries add`"""

from __future__ import annotations

import click

from .options import (
    WRITING_EXITS,
    Command,
    Session,
    database_argument,
    dry_run_option,
    json_option,
    open_database,
    pass_session,
)


@click.group()
def command() -> None:
    """Add a training set whose chunks want neighbours."""


@command.command(
    cls=Command, example="retrodb queries add my.retrodb validation.jsonl --name validation", exits=WRITING_EXITS
)
@database_argument
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@click.option("--name", required=True, metavar="NAME", help="Of the query set; an older one of this name is replaced.")
@click.option("--text-template", metavar="TEXT", help='Fields of a record, as "{question} {choices}".')
@dry_run_option
@json_option
@pass_session
def add(
    session: Session, database: str, files: tuple[str, ...], name: str, text_template: str | None, dry_run: bool
) -> None:
    """Register documents that want neighbours but do not belong into DB. 'retrodb embed' gives them vectors."""
    db = open_database(session, database)
    session.output.result(db.add_queries(name, files, text_template=text_template, dry_run=dry_run))
