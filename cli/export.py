"""`retrodb export`"""

from __future__ import annotations

from typing import Any

import click

from retrodb.config import EXPORT_FORMATS

from .options import WRITING_EXITS, Command, Session, as_of_option, is_given, open_database, runs_tasks


@click.command(
    cls=Command,
    example="""
    retrodb export my.retrodb out --to megatron
    retrodb export --refresh out
    """,
    exits=WRITING_EXITS,
)
@click.argument("database", required=False, metavar="DB")
@click.argument("out", required=False, metavar="OUT")
@click.option(
    "--to", default="parquet", show_default=True, metavar="FORMAT", help=f"One of: {', '.join(EXPORT_FORMATS)}."
)
@click.option("--table", metavar="NAME", help="Neighbour table.  [default: self]")
@click.option("--refresh", metavar="OUT", help="Bring an export up to date instead; its card knows its database.")
@click.option("--list", "is_list", is_flag=True, help="List the exports of DB instead.")
@as_of_option
@runs_tasks
def command(
    session: Session,
    /,
    database: str | None,
    out: str | None,
    refresh: str | None,
    is_list: bool,
    dry_run: bool,
    workers: int | None,
    **options: Any,
) -> None:
    """Write a neighbour table of DB, with the chunks it names, into the folder OUT.

    --refresh writes only the files in which something changed since: what was deleted becomes padding where it stood. No
    chunk changes its place. It says which files a running reader has to open again.
    """
    if refresh:
        if out or is_list or is_given("to") or is_given("table") or is_given("as_of"):
            raise click.UsageError("--refresh takes the format, table and place of the export that is there.")
        db = open_database(session, database or _database_of(refresh), workers)
        session.output.result(db.refresh_export(refresh, dry_run=dry_run))
    elif is_list and database and not out:
        session.output.rows(open_database(session, database).exports())
    elif database and out and not is_list:
        session.output.result(open_database(session, database, workers).export(out, dry_run=dry_run, **options))
    else:
        raise click.UsageError("Give DB and OUT, or --refresh OUT, or DB --list.")


def _database_of(out: str) -> str:
    from retrodb.database import database_of_export

    return database_of_export(out)
