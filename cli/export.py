"""`retrodb export`"""

from __future__ import annotations

import click

from retrodb.config import EXPORT_FORMATS

from .options import WRITING_EXITS, Command, Session, as_of_option, is_given, open_database, task_options


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
    "--to",
    default="parquet",
    show_default=True,
    metavar="FORMAT",
    help=f"Export format, one of: {', '.join(EXPORT_FORMATS)}.",
)
@click.option("--table", metavar="NAME", help="Name of the neighbour table.  [default: self]")
@click.option(
    "--refresh", metavar="OUT", help="Bring an existing export up to date. It knows the path of its database."
)
@click.option("--list", "is_list", is_flag=True, help="List the exports of DB.")
@as_of_option
@task_options
def command(
    session: Session,
    database: str | None,
    out: str | None,
    to: str,
    table: str | None,
    refresh: str | None,
    is_list: bool,
    as_of: int | None,
    dry_run: bool,
    workers: int | None,
) -> None:
    """Write a neighbour table of DB and its chunks into the folder OUT.

    --refresh rewrites only the files that have changes, and lists the files that a running reader must open again. Positions
    never change: deleted chunks become padding.
    """
    if refresh:
        if out or is_list or is_given("to") or is_given("table") or is_given("as_of"):
            raise click.UsageError("--refresh keeps format, table and path of the export. Remove the other options.")
        db = open_database(session, database or _database_of(refresh), workers)
        session.output.result(db.refresh_export(refresh, dry_run=dry_run))
    elif is_list and database and not out:
        session.output.rows(open_database(session, database).exports(), empty="There are no registered exports.")
    elif database and out and not is_list:
        db = open_database(session, database, workers)
        session.output.result(db.export(out, to=to, table=table, as_of=as_of, dry_run=dry_run))
    else:
        raise click.UsageError("Give DB and OUT, or --refresh OUT, or DB --list.")


def _database_of(out: str) -> str:
    from retrodb.database import database_of_export

    return database_of_export(out)
