"""`retrodb ingest`"""

from __future__ import annotations

from typing import Any

import click

from retrodb import errors
from retrodb.config import IngestParams

from .options import WRITING_EXITS, Command, Session, database_argument, open_database, reads_records, runs_tasks, share


@click.command(
    cls=Command,
    example="retrodb ingest my.retrodb articles.jsonl.zst --source wikipedia --holdout 0.5%",
    exits=[*WRITING_EXITS, errors.EXIT_REJECTS],
)
@database_argument
@click.argument("inputs", nargs=-1, metavar="INPUT...")
@click.option("--source", required=True, metavar="NAME", help="What the documents belong to; ids are unique within it.")
@reads_records
@click.option(
    "--files-from", multiple=True, metavar="LIST", help="A file that names one input a line; may be repeated."
)
@click.option(
    "--metadata-field",
    "metadata_fields",
    multiple=True,
    metavar="NAME",
    help="Field to keep; may be repeated.  [default: all]",
)
@click.option("--drop-metadata", is_flag=True, help="Keep no metadata.")
@click.option("--marker", metavar="TEXT", help="What separates the documents inside a plain-text file.")
@click.option("--mirror", is_flag=True, help="Remove documents of the source that the input no longer has.")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Take the first N records only.")
@click.option(
    "--holdout", type=share, default="0", show_default=True, metavar="SHARE", help="Documents to keep out, as 0.5%."
)
@click.option(
    "--max-document-chars",
    type=click.IntRange(min=1),
    default=IngestParams.max_document_chars,
    show_default=True,
    metavar="N",
    help="Longer documents are treated as --oversize says.",
)
@click.option(
    "--oversize",
    type=click.Choice(["reject", "split"]),
    default=IngestParams.oversize,
    show_default=True,
    help="As above.",
)
@click.option(
    "--max-record-bytes",
    type=click.IntRange(min=1),
    default=IngestParams.max_record_bytes,
    show_default=True,
    metavar="N",
    help="Decompressed bytes of one record.",
)
@click.option(
    "--max-reject-rate",
    type=share,
    default=str(IngestParams.max_reject_rate),
    show_default=True,
    metavar="SHARE",
    help="Above it nothing is committed.",
)
@runs_tasks
def command(
    session: Session,
    /,
    database: str,
    inputs: tuple[str, ...],
    workers: int | None,
    metadata_fields: tuple[str, ...],
    **options: Any,
) -> int | None:
    """Read documents from files, folders and globs (JSON Lines, Parquet, CSV, text, HTML, WARC; compressed or not) into DB.

    Only what is new or changed is added; input files that were read whole before are skipped. INPUT "-" is standard input.
    """
    db = open_database(session, database, workers)
    result = db.ingest(inputs, metadata_fields=metadata_fields or None, **options)
    session.output.result(result)
    if not result.rejected:
        return None
    place = f"; place and reason of each are in {database}/{result.rejects_path}" if result.rejects_path else ""
    session.output.note(f"{result.rejected:,} of {result.read:,} records were refused{place}.")
    return errors.EXIT_REJECTS
