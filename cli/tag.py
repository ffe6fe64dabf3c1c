"""`retrodb tag`"""

from __future__ import annotations

from typing import TYPE_CHECKING, Unpack

import click

from retrodb.config import TagParams

from .options import WRITING_EXITS, Command, Session, database_argument, device_option, open_database, task_options

if TYPE_CHECKING:
    from retrodb.options import TagOptions


@click.command(
    cls=Command, example="retrodb tag my.retrodb --name toxicity --wordlist bad-words.txt", exits=WRITING_EXITS
)
@database_argument
@click.option("--name", required=True, metavar="NAME", help="Name of the score. SQL conditions use it as a column.")
@click.option("--wordlist", metavar="FILE", help="Score with a file of words and phrases, one per line.")
@click.option(
    "--regex",
    metavar="REGEX",
    help="Score with a regular expression in RE2 syntax. Start it with (?i) to ignore case.",
)
@click.option("--hf-model", metavar="MODEL", help="Score with a sequence classifier: a folder or a Hugging Face name.")
@click.option(
    "--label",
    metavar="LABEL",
    help="Label of the classifier, by name or number. The score is its probability.",
)
@click.option(
    "--python",
    metavar="MODULE:FUNCTION",
    help="Score with a Python function that turns a list of texts into a list of numbers.",
)
@click.option(
    "--measure",
    type=click.Choice(["share", "count"]),
    default=TagParams.measure,
    show_default=True,
    help="Score of a word list or regular expression: the fraction of words that match, or the number of matches.",
)
@click.option("--retag", is_flag=True, help="Score all documents again if another tagger made the existing scores.")
@device_option
@task_options
def command(
    session: Session,
    /,
    database: str,
    workers: int | None,
    name: str,
    retag: bool,
    device: str,
    dry_run: bool,
    **options: Unpack[TagOptions],
) -> None:
    """Score every live document of DB with a word list, a regular expression, a classifier or a function.

    Documents that already have this score keep it. A score alone deletes nothing. To delete documents by score, use
    'retrodb filter --where "NAME > 0.5"'.
    """
    db = open_database(session, database, workers)
    session.output.result(db.tag(name, device=device, retag=retag, dry_run=dry_run, **options))
