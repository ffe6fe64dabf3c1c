"""`retrodb export`"""

from __future__ import annotations

import click

from retrodb.config import EXPORT_FORMATS

from .options import WRITING_EXITS, Command, Session, as_of_option, is_given, open_database, task_options

_SUBSETS = ("train", "valid", "test")


@click.command(
    cls=Command,
    example="""
    retrodb export my.retrodb out
    retrodb export my.retrodb project --to megatron --table train=self --table valid=heldout --seq-length 2048
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
@click.option(
    "--table",
    "tables",
    multiple=True,
    metavar="NAME",
    help="Name of the neighbour table. Repeat it as SUBSET=NAME for --to megatron, where SUBSET is train, valid or test."
    "  [default: self]",
)
@click.option("--seq-length", type=int, metavar="N", help="Tokens of a sample, for --to megatron.")
@click.option("--global-batch-size", type=int, metavar="N", help="Samples of a training step, for --to megatron.")
@click.option("--eval-interval", type=int, metavar="N", help="Steps between two validations, for --to megatron.")
@click.option("--eval-iters", type=int, metavar="N", help="Steps of a validation, for --to megatron.")
@click.option("--data-cache-path", metavar="DIR", help="Folder of Megatron's sample indices, for --to megatron.")
@click.option(
    "--contexts",
    type=click.Choice(["ctxs", "positive_ctxs"]),
    help="Name of the field of neighbours, for --to dpr: ctxs for a reader, positive_ctxs to train a retriever."
    "  [default: ctxs]",
)
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
    tables: tuple[str, ...],
    seq_length: int | None,
    global_batch_size: int | None,
    eval_interval: int | None,
    eval_iters: int | None,
    data_cache_path: str | None,
    contexts: str | None,
    refresh: str | None,
    is_list: bool,
    as_of: int | str | None,
    dry_run: bool,
    workers: int | None,
) -> None:
    """Write a neighbour table of DB and its chunks to OUT, a folder or the URL of a place in an object store.

    --refresh rewrites only the files that have changes, and lists the files that a running reader must open again. Positions
    never change: deleted chunks become padding.
    """
    if refresh:
        if out or is_list or any(map(is_given, _KEPT)):
            raise click.UsageError("--refresh keeps format, options and path of the export. Remove the other options.")
        db = open_database(session, database or _database_of(refresh), workers)
        session.output.result(db.refresh_export(refresh, dry_run=dry_run))
    elif is_list and database and not out:
        session.output.rows(open_database(session, database).exports(), empty="There are no registered exports.")
    elif database and out and not is_list:
        db = open_database(session, database, workers)
        result = db.export(
            out,
            to=to,
            table=_table(tables),
            as_of=as_of,
            dry_run=dry_run,
            seq_length=seq_length,
            global_batch_size=global_batch_size,
            eval_interval=eval_interval,
            eval_iters=eval_iters,
            data_cache_path=data_cache_path,
            contexts=contexts,
        )
        session.output.result(result)
    else:
        raise click.UsageError("Give DB and OUT, or --refresh OUT, or DB --list.")


_KEPT = (
    "to",
    "tables",
    "seq_length",
    "global_batch_size",
    "eval_interval",
    "eval_iters",
    "data_cache_path",
    "contexts",
    "as_of",
)


def _table(given: tuple[str, ...]) -> str | dict[str, str] | None:
    """A single name, or the tables by subset."""
    pairs = [name.partition("=") for name in given if name.partition("=")[0] in _SUBSETS and "=" in name]
    if not pairs:
        if len(given) > 1:
            raise click.UsageError("Give one --table, or --table SUBSET=NAME for each of several.")
        return given[0] if given else None
    if len(pairs) < len(given):
        raise click.UsageError("Give every --table as SUBSET=NAME, where SUBSET is train, valid or test.")
    subsets = [subset for subset, _, _ in pairs]
    if len(set(subsets)) < len(subsets):
        raise click.UsageError("Give one --table for each subset.")
    return {subset: name for subset, _, name in pairs}


def _database_of(out: str) -> str:
    from retrodb.database import database_of_export

    return database_of_export(out)
