"""`retrodb queries add`"""

from __future__ import annotations

from typing import TYPE_CHECKING, Unpack

import click

from .options import WRITING_EXITS, Command, Session, database_argument, open_database, task_options

if TYPE_CHECKING:
    from retrodb.options import PackingOptions


@click.group()
def command() -> None:
    """Add a training set whose chunks need neighbours."""


@command.command(
    cls=Command,
    example="""
    retrodb queries add my.retrodb validation.jsonl --name validation
    retrodb queries add my.retrodb --name mine --tokens chunks.npy --doc-ids documents.npy
    retrodb queries add my.retrodb --name training --megatron data/wiki_text_document --seq-length 4096 --train-samples 9000
    """,
    exits=WRITING_EXITS,
)
@database_argument
@click.argument("files", nargs=-1, metavar="[FILE...]")
@click.option(
    "--name",
    required=True,
    metavar="NAME",
    help="Name of the query set. An older query set with this name is replaced.",
)
@click.option("--jsonl", multiple=True, metavar="FILE", help="File with documents, like FILE. May be repeated.")
@click.option(
    "--text-template", metavar="TEXT", help='Template for the text of a record, such as "{question} {choices}".'
)
@click.option(
    "--tokens", metavar="FILE", help="File (.npy) with token ids, one chunk per row. --doc-ids is a .npy file too."
)
@click.option("--sequences", type=int, metavar="N", help="Pack DB's own documents into sequences of N tokens.")
@click.option(
    "--megatron", metavar="PREFIX", help="Megatron data set: path of the .bin and .idx files without the ending."
)
@click.option("--blend", metavar="TEXT", help='Several Megatron data sets: "WEIGHT PREFIX WEIGHT PREFIX ...".')
@click.option("--seq-length", type=int, metavar="N", help="Sequence length of the Megatron training run in tokens.")
@click.option("--train-samples", type=int, metavar="N", help="Number of samples of the Megatron training run.")
@click.option("--split", metavar="A,B,C", help="Data split of the Megatron training run.  [default: 969,30,1]")
@click.option("--seed", type=int, metavar="N", help="Random seed of the Megatron training run.  [default: 1234]")
@click.option("--subset", metavar="NAME", help="Part of the split to add: train, valid or test.  [default: train]")
@click.option(
    "--doc-ids",
    multiple=True,
    metavar="FILE",
    help="File with the documents of a Megatron data set, one per line: ID, SOURCE/ID, or JSON as "
    '{"id": "ID", "source": "NAME"}. May be repeated.',
)
@click.option(
    "--allow-unknown", is_flag=True, help="Add the query set although none of the names in --doc-ids is in DB."
)
@click.option("--tokenizer", metavar="FILE", help="Tokenizer of the sequences.  [default: DB's tokenizer]")
@task_options
def add(
    session: Session,
    /,
    database: str,
    files: tuple[str, ...],
    jsonl: tuple[str, ...],
    name: str,
    text_template: str | None,
    tokenizer: str | None,
    allow_unknown: bool,
    dry_run: bool,
    workers: int | None,
    **packing: Unpack[PackingOptions],
) -> None:
    """Add a query set: text that needs neighbours, but is not part of DB. It is either FILEs or packed sequences.

    Run 'retrodb embed' next. Rows of a Megatron training set have the order of megatron-core's own samples, so that package
    must be installed. Documents in --doc-ids cannot become neighbours of the sequences that contain them; an id that is in
    several sources excludes all of these documents.
    """
    db, all_files = open_database(session, database, workers), (*files, *jsonl)
    if any(packing.values()):
        if all_files or text_template:
            raise click.UsageError("FILEs and packed sequences are different query sets. Give only one of them.")
        result = db.add_packed_queries(
            name, tokenizer=tokenizer, allow_unknown=allow_unknown, dry_run=dry_run, **packing
        )
        session.output.result(result)
        if result.num_known_names < result.num_names:
            session.output.note(
                f"{result.num_known_names:,} of {result.num_names:,} names are in the database. "
                "The others exclude nothing from the rows that come with them."
            )
        return
    if not all_files:
        raise click.UsageError("Give FILEs, or one of --tokens, --megatron, --blend and --sequences.")
    session.output.result(db.add_queries(name, all_files, text_template=text_template, dry_run=dry_run))
