"""`retrodb dedup`"""

from __future__ import annotations

from typing import Any

import click

from retrodb.config import DedupParams, NearDuplicatesParams

from .options import WRITING_EXITS, Command, Session, database_argument, is_given, open_database, runs_tasks
from .render import duplicate, leak, near_verdict, verdict

_OF_TESTSET = ("text_template", "rule", "level", "short_texts", "max_document_frequency", "method")


@click.command(
    cls=Command, example="retrodb dedup my.retrodb --against wikitext103-test.jsonl --report", exits=WRITING_EXITS
)
@database_argument
@click.argument("more", nargs=-1, metavar="[FILE]...")
@click.option(
    "--against", multiple=True, metavar="FILE", help="Test-set file (JSON Lines, Parquet, text); more may follow."
)
@click.option("--name", metavar="NAME", help="Name of the test set.  [default: the first file's]")
@click.option("--text-template", metavar="TEXT", help='Fields of a test record, as "{question} {choices}".')
@click.option(
    "--rule", default=DedupParams.rule, show_default=True, metavar="RULE", help="jaccard>=X or containment>=X."
)
@click.option(
    "--ngram", type=int, default=DedupParams.ngram, show_default=True, metavar="N", help="Words of a shingle."
)
@click.option(
    "--level",
    type=click.Choice(["document", "chunk"]),
    default=DedupParams.level,
    show_default=True,
    help="What goes: the document, or the chunks that shared shingles touch.",
)
@click.option(
    "--short-texts",
    type=click.Choice(["report", "remove"]),
    default=DedupParams.short_texts,
    show_default=True,
    help="Exact matches of texts too short for a shingle.",
)
@click.option("--max-document-frequency", type=float, metavar="SHARE", help="Containment: ignore shingles more common.")
@click.option(
    "--method",
    type=click.Choice(["exact", "minhash"]),
    default=DedupParams.method,
    show_default=True,
    help="minhash: as the paper did it; slower, and it misses some.",
)
@click.option("--near-duplicates", is_flag=True, help="Instead: keep one of documents of DB that are alike.")
@click.option(
    "--jaccard", type=float, metavar="X", help=f"Of near-duplicates.  [default: {NearDuplicatesParams.jaccard:g}]"
)
@click.option(
    "--keep",
    type=click.Choice(["first", "longest", "newest"]),
    help=f"Which near-duplicate stays.  [default: {NearDuplicatesParams.keep}]",
)
@click.option(
    "--permutations",
    type=click.Choice(["128", "256"]),
    help=f"Of MinHash.  [default: {DedupParams.permutations}, near-duplicates {NearDuplicatesParams.permutations}]",
)
@click.option(
    "--bands",
    metavar="BxR",
    help=f"Of MinHash: bands x rows.  [default: {DedupParams.bands}, near-duplicates {NearDuplicatesParams.bands}]",
)
@click.option("--report", is_flag=True, help="Print who matched whom.")
@runs_tasks
def command(
    session: Session,
    /,
    database: str,
    more: tuple[str, ...],
    against: tuple[str, ...],
    name: str | None,
    near_duplicates: bool,
    jaccard: float | None,
    keep: str | None,
    permutations: str | None,
    bands: str | None,
    report: bool,
    workers: int | None,
    dry_run: bool,
    **options: Any,
) -> None:
    """Hold the documents of DB against a test set, and take out what the rule calls a leak.

    The test set is remembered: later documents are held against it before anything else is done with them. Without
    files, the screening of the remembered test sets is brought up to date.

    With --near-duplicates documents of DB are held against each other, and one of those that are alike is kept.
    """
    if more and not against:
        raise click.UsageError("Test-set files follow --against.")
    if report and dry_run:
        raise click.UsageError("--report shows what was found and kept; a dry run keeps nothing.")
    _refuse_unused(bool(against), near_duplicates, options["method"])
    db = open_database(session, database, workers)
    bands_options = {"permutations": int(permutations) if permutations else None, "bands": bands}
    if near_duplicates:
        own = {"jaccard": jaccard, "keep": keep, "ngram": options["ngram"], **bands_options}
        found = db.near_duplicates(dry_run=dry_run, **own)
        session.output.result(found, near_verdict)
        if report:
            session.output.rows(db.duplicates(), duplicate)
        return
    given = {**options, **bands_options} if against else {}
    results = db.dedup([*against, *more], name=name, dry_run=dry_run, **given)
    session.output.rows(results, verdict)
    if not results:
        session.output.note("No test set is registered. Name its files with --against.")
    if report:
        for result in results:
            session.output.rows(db.leaks(result.testset), leak)


def _refuse_unused(has_files: bool, near_duplicates: bool, method: str) -> None:
    """Refuse options that were given but would not be used, and say what they belong to."""
    unused: dict[str, str] = {}
    if near_duplicates or not has_files:
        unused |= dict.fromkeys(_OF_TESTSET, "a new test set, whose files --against names")
    if near_duplicates:
        unused |= dict.fromkeys(("against", "name"), "a test set, not to --near-duplicates")
    else:
        unused |= dict.fromkeys(("jaccard", "keep"), "--near-duplicates")
        if not has_files:
            unused["ngram"] = "a new test set, whose files --against names, or to --near-duplicates"
        if method != "minhash":
            unused |= dict.fromkeys(("permutations", "bands"), "--method minhash or to --near-duplicates")
    for option in filter(is_given, unused):
        raise click.UsageError(f"--{option.replace('_', '-')} belongs to {unused[option]}.")
