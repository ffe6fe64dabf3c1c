"""`retrodb tag`"""

from __future__ import annotations

import click

from retrodb.config import TagParams

from .options import WRITING_EXITS, Command, Session, database_argument, device_option, open_database, runs_tasks


@click.command(
    cls=Command, example="retrodb tag my.retrodb --name toxicity --wordlist bad-words.txt", exits=WRITING_EXITS
)
@database_argument
@click.option("--name", required=True, metavar="NAME", help="Of the score, by which conditions know it.")
@click.option("--wordlist", metavar="FILE", help="Words and phrases, one a line.")
@click.option("--regex", metavar="REGEX", help="An expression of RE2; (?i) at its beginning ignores case.")
@click.option("--hf-model", metavar="MODEL", help="A sequence classifier: folder or hub name.")
@click.option("--label", metavar="LABEL", help="Of the classifier, whose probability is the score: name or number.")
@click.option("--python", metavar="MODULE:FUNCTION", help="A function from a list of texts to a list of numbers.")
@click.option(
    "--measure",
    type=click.Choice(["share", "count"]),
    default=TagParams.measure,
    show_default=True,
    help="Of word lists and expressions: the share of a document's words that match, or the number of matches.",
)
@click.option("--retag", is_flag=True, help="Score all documents anew when another tagger had the name.")
@device_option
@runs_tasks
def command(
    session: Session,
    /,
    database: str,
    workers: int | None,
    name: str,
    retag: bool,
    device: str,
    dry_run: bool,
    **options: str | None,
) -> None:
    """Give every live document of DB a score by a word list, an expression, a classifier or a function.

    Documents that have their score keep it. A score decides nothing: see 'retrodb filter --where "NAME > 0.5"'.
    """
    db = open_database(session, database, workers)
    session.output.result(db.tag(name, device=device, retag=retag, dry_run=dry_run, **options))
