"""`retrodb dedup`"""

from __future__ import annotations

from typing import TYPE_CHECKING, Unpack

import click

from retrodb.config import DedupParams, NearDuplicatesParams
from retrodb.options import DedupOptions, NearDuplicatesOptions

from .options import WRITING_EXITS, Command, Session, database_argument, is_given, open_database, task_options
from .render import dedup_result, duplicate, leak_hit, near_duplicates_result, unused_text_fields

if TYPE_CHECKING:
    from retrodb.database import Database

_TESTSET_OPTIONS = ("text_template", "rule", "level", "short_texts", "max_document_frequency", "method")


def _to_int(_ctx: click.Context, _param: click.Parameter, text: str | None) -> int | None:
    return None if text is None else int(text)


@click.command(
    cls=Command, example="retrodb dedup my.retrodb --against wikitext103-test.jsonl --report", exits=WRITING_EXITS
)
@database_argument
@click.argument("more", nargs=-1, metavar="[FILE]...")
@click.option(
    "--against",
    multiple=True,
    metavar="FILE",
    help="File of a new test set (JSON Lines, Parquet or text). More files may follow it.",
)
@click.option("--name", metavar="NAME", help="Name of the test set.  [default: name of the first file]")
@click.option(
    "--text-template", metavar="TEXT", help='Template for the text of a test record, such as "{question} {choices}".'
)
@click.option(
    "--rule",
    default=DedupParams.rule,
    show_default=True,
    metavar="RULE",
    help="When a document is a leak: jaccard>=X or containment>=X.",
)
@click.option(
    "--ngram", type=int, default=DedupParams.ngram, show_default=True, metavar="N", help="Number of words per shingle."
)
@click.option(
    "--level",
    type=click.Choice(["document", "chunk"]),
    default=DedupParams.level,
    show_default=True,
    help="What to delete: the whole document, or only chunks with shared shingles.",
)
@click.option(
    "--short-texts",
    type=click.Choice(["report", "remove"]),
    default=DedupParams.short_texts,
    show_default=True,
    help="What to do with exact matches of test texts that are too short for a shingle.",
)
@click.option(
    "--max-document-frequency",
    type=float,
    metavar="FRACTION",
    help="For containment rules: ignore shingles that more than this fraction of documents has.",
)
@click.option(
    "--method",
    type=click.Choice(["exact", "minhash"]),
    default=DedupParams.method,
    show_default=True,
    help="How to compare. minhash is the method of the paper; it is slower and misses some leaks.",
)
@click.option(
    "--near-duplicates",
    is_flag=True,
    help="Instead of test sets: find near-duplicate documents in DB, and keep one of each cluster.",
)
@click.option(
    "--jaccard",
    type=float,
    default=NearDuplicatesParams.jaccard,
    show_default=True,
    metavar="X",
    help="Smallest Jaccard similarity of near-duplicates.",
)
@click.option(
    "--keep",
    type=click.Choice(["first", "longest", "newest"]),
    default=NearDuplicatesParams.keep,
    show_default=True,
    help="Which near-duplicate to keep.",
)
@click.option(
    "--permutations",
    type=click.Choice(["128", "256"]),
    callback=_to_int,
    help="Number of hash functions of MinHash."
    f"  [default: {DedupParams.permutations}; {NearDuplicatesParams.permutations} for near-duplicates]",
)
@click.option(
    "--bands",
    metavar="BxR",
    help="Number of MinHash bands and of rows in each."
    f"  [default: {DedupParams.bands}; {NearDuplicatesParams.bands} for near-duplicates]",
)
@click.option("--report", is_flag=True, help="Also print the texts that match.")
@task_options
def command(
    session: Session,
    /,
    database: str,
    more: tuple[str, ...],
    against: tuple[str, ...],
    name: str | None,
    near_duplicates: bool,
    jaccard: float,
    keep: str,
    report: bool,
    workers: int | None,
    dry_run: bool,
    **options: Unpack[DedupOptions],
) -> None:
    """Compare the documents of DB with a test set, and delete the documents that the rule calls a leak.

    DB remembers the test set, and compares later documents with it too. Without files, the command brings the registered
    test sets up to date.

    With --near-duplicates, the documents of DB are compared with each other. Of similar documents, one is kept.
    """
    if more and not against:
        raise click.UsageError("Give --against before the files of a test set.")
    if report and dry_run:
        raise click.UsageError("--report shows stored matches, and --dry-run stores none. Remove one of them.")
    _refuse_unused(bool(against), near_duplicates, options["method"])
    db = open_database(session, database, workers)
    if near_duplicates:
        near = NearDuplicatesOptions(
            jaccard=jaccard,
            keep=keep,
            ngram=options["ngram"],
            permutations=options["permutations"],
            bands=options["bands"],
        )
        _near_duplicates(session, db, near, report, dry_run)
    elif against:
        _testsets(session, db, [*against, *more], name, options, report, dry_run)
    else:
        _testsets(session, db, [], name, DedupOptions(), report, dry_run)


def _testsets(
    session: Session,
    db: Database,
    files: list[str],
    name: str | None,
    options: DedupOptions,
    report: bool,
    dry_run: bool,
) -> None:
    results = db.dedup(files, name=name, dry_run=dry_run, **options)
    session.output.rows(results, dedup_result, empty="No test set is registered. Give the files of one with --against.")
    for result in results:
        if result.unused_text_fields:
            session.output.note(unused_text_fields(result.unused_text_fields))
    if report:
        for result in results:
            session.output.rows(
                db.leaks(result.testset), leak_hit, empty=f"{result.testset}: no document shares a shingle with it."
            )


def _near_duplicates(
    session: Session, db: Database, options: NearDuplicatesOptions, report: bool, dry_run: bool
) -> None:
    session.output.result(db.near_duplicates(dry_run=dry_run, **options), near_duplicates_result)
    if report:
        session.output.rows(db.duplicates(), duplicate, empty="No document was deleted as a near-duplicate.")


def _refuse_unused(has_files: bool, near_duplicates: bool, method: str) -> None:
    """Refuse options that would have no effect, and say what they need."""
    needs: dict[str, str] = {}
    if near_duplicates or not has_files:
        needs |= dict.fromkeys(_TESTSET_OPTIONS, "the files of a new test set (--against)")
    if near_duplicates:
        needs |= dict.fromkeys(("against", "name"), "a test set, and does not work with --near-duplicates")
    else:
        needs |= dict.fromkeys(("jaccard", "keep"), "--near-duplicates")
        if not has_files:
            needs["ngram"] = "the files of a new test set (--against), or --near-duplicates"
        if method != "minhash":
            needs |= dict.fromkeys(("permutations", "bands"), "--method minhash or --near-duplicates")
    for option in filter(is_given, needs):
        raise click.UsageError(f"--{option.replace('_', '-')} needs {needs[option]}.")
