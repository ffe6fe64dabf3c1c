"""The options that select documents: by a condition, by a list of ids, and by source."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from retrodb import errors

from .options import Decorator, Session, combine

if TYPE_CHECKING:
    from retrodb.database import DocumentName

_LISTED_NAMES = 5


def _read_doc_ids(_ctx: click.Context, _param: click.Parameter, path: str | None) -> list[str | DocumentName] | None:
    if path is None:
        return None
    from retrodb.database import read_doc_ids

    return read_doc_ids(path)


def doc_ids_option(*, required: bool = False) -> Decorator:
    """The options `doc_ids`, a file with document ids, and `ignore_unknown`."""
    return combine(
        click.option(
            "--doc-ids",
            callback=_read_doc_ids,
            required=required,
            metavar="FILE",
            help='Select the documents in this file, one per line: ID, or JSON as {"id": "ID", "source": "NAME"}. '
            "An id that stands for several documents is refused. '-' reads stdin.",
        ),
        click.option("--ignore-unknown", is_flag=True, help="Exit with 0 although no document has some of the ids."),
    )


def note_unknown(
    session: Session, unknown: Sequence[str], doc_ids: Sequence[str | DocumentName] | None, *, ignore: bool
) -> int:
    """Report the names that no document has, and return the exit code."""
    if not unknown:
        return errors.EXIT_OK
    num_names = len(set(doc_ids or unknown))
    listed = ", ".join(f"'{name}'" for name in unknown[:_LISTED_NAMES]) + (
        ", ..." if len(unknown) > _LISTED_NAMES else ""
    )
    remedy = "" if ignore else " Check the list, or add '--ignore-unknown'."
    slash = any("/" in name and not name.startswith("{") for name in unknown)
    hint = ' A line is an id. To name a source, write {"id": "ID", "source": "NAME"} or use --source.' if slash else ""
    session.output.note(
        f"{num_names - len(unknown):,} of {num_names:,} names are in the database. Unknown: {listed}.{hint}{remedy}"
    )
    return errors.EXIT_OK if ignore else errors.EXIT_REJECTS


selection_options = combine(
    click.option(
        "--where",
        metavar="SQL",
        help="Select documents that match this SQL condition. It can use document columns, scores, text and "
        "metadata->>'FIELD'.",
    ),
    doc_ids_option(),
    click.option("--source", metavar="NAME", help="Select documents of this source. It is also the source of the ids."),
)
"""The options that select documents: `where`, `doc_ids`, `ignore_unknown` and `source`."""
