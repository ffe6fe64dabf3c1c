"""`retrodb sql`"""

from __future__ import annotations

import click

from .options import READING_EXITS, Command, Session, database_argument, memory_option, open_database, snapshot_options


@click.command(
    cls=Command,
    example='retrodb sql my.retrodb "select source, count(*) from documents where live group by source"',
    exits=READING_EXITS,
)
@database_argument
@click.argument("query", metavar="SELECT")
@memory_option
@snapshot_options
def command(session: Session, database: str, query: str, as_of: int | str | None) -> None:
    """Run a SELECT query over the tables documents, chunks, shards and files of DB. It cannot change anything."""
    result = open_database(session, database).sql(query, as_of=as_of)
    if result.renamed:
        session.output.note(f"Several columns have the same name. Renamed: {', '.join(result.renamed)}.")
    session.output.table("sql_row", result.columns, result.rows)
