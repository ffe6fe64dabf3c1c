"""`retrodb build`"""

from __future__ import annotations

import sys
from typing import Any

import click

from retrodb import errors
from retrodb.config import InitParams

from .options import WRITING_EXITS, Command, Session, database_argument, reads_records, runs_tasks, share
from .render_update import build_plan, build_result, update_step


@click.command(
    cls=Command,
    example="retrodb build my.retrodb articles.jsonl.zst --tokenizer gpt2 --against wikitext103-test.jsonl",
    exits=[*WRITING_EXITS, errors.EXIT_CONFLICT],
)
@database_argument
@click.argument("inputs", nargs=-1, required=True, metavar="INPUT...")
@click.option("--tokenizer", metavar="NAME", help="The language model's: a file, a folder, a hub name; or 'train'.")
@click.option("--encoder", default=InitParams.encoder, show_default=True, metavar="NAME", help="Of the default space.")
@click.option("--source", metavar="NAME", help="What the documents belong to.  [default: the first input's name]")
@reads_records
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Take the first N records only.")
@click.option(
    "--holdout", type=share, default="0", show_default=True, metavar="SHARE", help="Documents to keep out, as 0.5%."
)
@click.option("--against", multiple=True, metavar="FILE", help="A test set that must not be in it; may be repeated.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@runs_tasks
def command(session: Session, /, database: str, tokenizer: str | None, yes: bool, dry_run: bool, **options: Any) -> int:
    """Build DB from INPUT: look at five documents, estimate every stage, ask once, and run them all.

    The recipe that this writes into DB is what `retrodb update DB` goes on with. An interrupted build is continued.
    """
    from retrodb.database import build, plan_build

    if tokenizer is None:
        raise errors.UsageError(
            "the language model's tokenizer is not named",
            remedy="Add '--tokenizer gpt2', another name or file, or '--tokenizer train' to train one on the input.",
        )
    if not (yes or dry_run or sys.stdin.isatty()):
        raise errors.UsageError("nobody is there to be asked", remedy="Add '--yes' to build, or '--dry-run' to look.")
    session.output.result(plan_build(database, tokenizer=tokenizer, **options), build_plan)
    if dry_run:
        return errors.EXIT_OK
    if not yes and not click.confirm(f"Build {database}?", err=True):
        session.output.note("Nothing was written.")
        return errors.EXIT_INTERRUPTED
    result = build(
        database,
        tokenizer=tokenizer,
        progress=session.shows_progress,
        report=lambda step: session.output.result(step, update_step),
        **options,
    )
    session.output.result(result, build_result)
    return result.exit_code
