"""`retrodb queries add`"""

from __future__ import annotations

from typing import Any

import click

from .options import WRITING_EXITS, Command, Session, database_argument, open_database, runs_tasks


@click.group()
def command() -> None:
    """Add a training set whose chunks want neighbours."""


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
@click.option("--name", required=True, metavar="NAME", help="Of the query set; an older one of this name is replaced.")
@click.option("--jsonl", multiple=True, metavar="FILE", help="Documents, as FILE is; repeatable.")
@click.option("--text-template", metavar="TEXT", help='Fields of a record, as "{question} {choices}".')
@click.option("--tokens", metavar="FILE", help="Chunks of DB's token ids, the rows of a .npy; --doc-ids is one, too.")
@click.option("--sequences", type=int, metavar="N", help="DB's own documents, packed in sequences of N tokens.")
@click.option("--megatron", metavar="PREFIX", help="A Megatron training set: its .bin and .idx without the endings.")
@click.option("--blend", metavar="TEXT", help='Several of them: "WEIGHT PREFIX WEIGHT PREFIX ...".')
@click.option("--seq-length", type=int, metavar="N", help="Of the training run, in tokens.")
@click.option("--train-samples", type=int, metavar="N", help="Of the training run.")
@click.option("--split", metavar="A,B,C", help="Of the training run.  [default: 969,30,1]")
@click.option("--seed", type=int, metavar="N", help="Of the training run.  [default: 1234]")
@click.option("--subset", metavar="NAME", help="train, valid or test.  [default: train]")
@click.option(
    "--doc-ids",
    multiple=True,
    metavar="FILE",
    help="Names of a prefix's documents, as SOURCE/ID, one a line; repeatable.",
)
@click.option("--tokenizer", metavar="FILE", help="Of the sequences.  [default: DB's]")
@runs_tasks
def add(
    session: Session,
    /,
    database: str,
    files: tuple[str, ...],
    jsonl: tuple[str, ...],
    name: str,
    text_template: str | None,
    tokenizer: str | None,
    dry_run: bool,
    workers: int | None,
    **packing: Any,
) -> None:
    """Register what wants neighbours but does not belong into DB: documents of FILEs, or a trainer's packed sequences.

    'retrodb embed' gives the rows vectors. The rows of a Megatron training set are in the order of megatron-core's own
    samples, which needs that package; --doc-ids names the documents that a sequence must not meet as its neighbours.
    """
    db, files = open_database(session, database, workers), (*files, *jsonl)
    if any(packing.values()):
        if files or text_template:
            raise click.UsageError("FILEs and packed sequences are two query sets.")
        session.output.result(db.add_packed_queries(name, tokenizer=tokenizer, dry_run=dry_run, **packing))
        return
    if not files:
        raise click.UsageError("Give FILEs, or one of --tokens, --megatron, --blend and --sequences.")
    session.output.result(db.add_queries(name, files, text_template=text_template, dry_run=dry_run))
