"""`retrodb build`"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Unpack

import click

from retrodb import errors
from retrodb.config import InitParams

from .option_types import fraction
from .options import (
    WRITING_EXITS,
    Command,
    Session,
    check_engine,
    confirm,
    database_argument,
    recipe_device_option,
    record_options,
    reject_rate_option,
    task_options,
)
from .render_update import build_plan, build_result, update_step

if TYPE_CHECKING:
    from retrodb.options import IngestOptions


_NO_TERMINAL = "Add '--yes' to build, or '--dry-run' to look."


@click.command(
    cls=Command,
    example="retrodb build my.retrodb articles.jsonl.zst --tokenizer gpt2 --against wikitext103-test.jsonl",
    exits=[*WRITING_EXITS, errors.EXIT_CONFLICT, errors.EXIT_REJECTS],
)
@database_argument
@click.argument("inputs", nargs=-1, required=True, metavar="INPUT...")
@click.option(
    "--tokenizer",
    metavar="NAME",
    help="Tokenizer of the language model: a file, a folder or a Hugging Face name. 'train' trains one on the input.",
)
@click.option(
    "--encoder",
    default=InitParams.encoder,
    show_default=True,
    metavar="NAME",
    help="Encoder of the default space: a folder, a Hugging Face name, or hashing:DIM.",
)
@click.option("--source", metavar="NAME", help="Name of the source of the documents.  [default: from the first input]")
@record_options
@reject_rate_option
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
    "--against",
    multiple=True,
    metavar="FILE",
    help="Test set whose texts must not be in DB. Repeat the option for several.",
)
@recipe_device_option
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
@task_options
def command(
    session: Session,
    /,
    database: str,
    inputs: tuple[str, ...],
    tokenizer: str | None,
    encoder: str,
    against: tuple[str, ...],
    device: str | None,
    yes: bool,
    workers: int | None,
    dry_run: bool,
    **options: Unpack[IngestOptions],
) -> int:
    """Build DB from INPUT: show five documents, estimate every stage, ask for confirmation, and run all stages.

    The command also writes a recipe into DB, which 'retrodb update DB' follows later. To continue an interrupted build,
    run the same command again.
    """
    from retrodb.database import build, plan_build

    if tokenizer is None:
        raise errors.UsageError(
            "the tokenizer of the language model is missing",
            remedy="Add '--tokenizer gpt2' or another name or file, or '--tokenizer train' to train one on the input.",
        )
    if not (yes or dry_run or sys.stdin.isatty()):
        raise errors.UsageError("cannot ask for confirmation without a terminal", remedy=_NO_TERMINAL)
    check_engine(session, workers)
    plan = plan_build(
        database,
        inputs,
        tokenizer=tokenizer,
        encoder=encoder,
        against=against,
        workers=workers,
        device=device,
        **options,
    )
    session.output.result(plan, build_plan)
    for note in plan.notes:
        session.output.note(note)
    if dry_run:
        return errors.EXIT_OK
    if not yes and not confirm(f"Build {database}?", _NO_TERMINAL):
        session.output.note("Nothing was written.")
        return errors.EXIT_ERROR
    result = build(
        database,
        inputs,
        tokenizer=tokenizer,
        encoder=encoder,
        against=against,
        workers=workers,
        memory_bytes=session.memory_bytes,
        device=device,
        progress=session.shows_progress,
        engine=session.engine,
        lease_s=session.lease_s,
        ray_address=session.ray_address,
        report=lambda step: session.output.result(step, update_step),
        **options,
    )
    session.output.result(result, build_result)
    return result.exit_code
