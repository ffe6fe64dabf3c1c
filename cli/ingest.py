"""`retrodb ingest`"""

from __future__ import annotations

from typing import TYPE_CHECKING, Unpack

import click
from click.core import ParameterSource

from retrodb import errors
from retrodb.config import IngestParams

from .option_types import fraction
from .options import (
    WRITING_EXITS,
    Command,
    Session,
    database_argument,
    open_database,
    record_options,
    reject_rate_option,
    task_options,
)

if TYPE_CHECKING:
    from retrodb.options import IngestOptions


def _all_if_none(_ctx: click.Context, _param: click.Parameter, names: tuple[str, ...]) -> tuple[str, ...] | None:
    return names or None


def _given(options: IngestOptions) -> IngestOptions:
    """The options that are on the command line. The others take the values that the source remembers."""
    context = click.get_current_context()
    for name in list(options):
        if context.get_parameter_source(name) is ParameterSource.DEFAULT:
            del options[name]  # type: ignore[misc]
    return options


@click.command(
    cls=Command,
    example="retrodb ingest my.retrodb articles.jsonl.zst --source wikipedia --holdout 0.5%",
    exits=[*WRITING_EXITS, errors.EXIT_REJECTS],
)
@database_argument
@click.argument("inputs", nargs=-1, metavar="INPUT...")
@click.option(
    "--source",
    required=True,
    metavar="NAME",
    help="Name of the source of the documents. Ids are unique within a source.",
)
@record_options
@click.option(
    "--files-from", multiple=True, metavar="LIST", help="File with one input per line. Repeat the option for several."
)
@click.option(
    "--metadata-field",
    "metadata_fields",
    multiple=True,
    metavar="NAME",
    callback=_all_if_none,
    help="Field to keep as metadata. Repeat the option for several.  [default: keep all]",
)
@click.option("--drop-metadata/--keep-metadata", default=False, help="Whether to keep no metadata at all.")
@click.option("--marker", metavar="TEXT", help="Text that separates the documents in a plain-text file.")
@click.option("--mirror", is_flag=True, help="Delete documents of the source that are no longer in the input.")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Read only the first N records.")
@click.option(
    "--holdout",
    type=fraction,
    default="0",
    show_default=True,
    metavar="FRACTION",
    help="Fraction of documents to hold out for evaluation, such as 0.5%.",
)
@click.option(
    "--max-document-chars",
    type=click.IntRange(min=1),
    default=IngestParams.max_document_chars,
    show_default=True,
    metavar="N",
    help="Length limit of a document in characters.",
)
@click.option(
    "--oversize",
    type=click.Choice(["reject", "split"]),
    default=IngestParams.oversize,
    show_default=True,
    help="What to do with documents above --max-document-chars.",
)
@click.option(
    "--max-record-bytes",
    type=click.IntRange(min=1),
    default=IngestParams.max_record_bytes,
    show_default=True,
    metavar="N",
    help="Size limit of one decompressed record in bytes.",
)
@reject_rate_option
@click.option(
    "--change-options",
    is_flag=True,
    help="Read the source with other options than in its last ingest, although that replaces or removes documents.",
)
@task_options
def command(
    session: Session,
    /,
    database: str,
    inputs: tuple[str, ...],
    files_from: tuple[str, ...],
    change_options: bool,
    workers: int | None,
    dry_run: bool,
    **options: Unpack[IngestOptions],
) -> int | None:
    """Read documents from files, folders and globs, and add them to DB. INPUT "-" is standard input.

    Formats are JSON Lines, Parquet, CSV, text, HTML, WARC and more, compressed or not. Only new and changed documents are
    added. Input files that were already read completely are skipped. So are binary files of an unknown format in folders.

    An input file that is cut off or damaged is rejected whole, and the others are read.

    A source remembers the options that decide how its files are read. An option that is left out has the value of the last
    ingest; an empty value ('') takes the default again. Other values that would replace documents are refused without
    --change-options.
    """
    db = open_database(session, database, workers)
    result = db.ingest(inputs, files_from=files_from, change_options=change_options, dry_run=dry_run, **_given(options))
    session.output.result(result)
    for note in result.all_notes(database):
        session.output.note(note)
    return errors.EXIT_REJECTS if result.num_rejected else None
