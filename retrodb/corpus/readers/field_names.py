"""Two columns or fields of one name: a reader must not choose one of them in silence."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

from retrodb.corpus.document import ID_NAMES, TEXT_NAMES, Fields
from retrodb.corpus.file_names import escape_name
from retrodb.errors import InputError


class DuplicateField(ValueError):
    """Two fields of a JSON object have one name. The message has the name and both positions."""


def check_columns(names: Sequence[str], kept: Iterable[str] | None, path: str) -> None:
    """Refuse a table in which two of the columns that are kept have one name.

    Args:
        names: of all columns, in their order.
        kept: the columns that become part of documents; None: all.
        path: of the file, for the error.

    Raises:
        InputError: names the column and both positions.
    """
    duplicate = _first_duplicate([name for name in names if kept is None or name in set(kept)])
    if duplicate is not None:
        first, second = [number for number, name in enumerate(names, 1) if name == duplicate][:2]
        what = f"columns {first} and {second} are both named '{escape_name(duplicate)}'"
        raise InputError(what, where=path, remedy="Rename one of them.")


def kept_columns(names: Sequence[str], fields: Fields) -> list[str] | None:
    """Names of the columns that become part of documents; None if all do."""
    if fields.metadata is None and not fields.drop_metadata:
        return None
    wanted = {fields.id, fields.text, fields.key, fields.value, *(fields.metadata or ())}
    wanted |= set(ID_NAMES if fields.id is None else ()) | set(TEXT_NAMES if fields.text is None else ())
    return [name for name in names if name in wanted]


def find_duplicate_field(content: bytes, value: object) -> DuplicateField | None:
    """The first two fields of one name in an object of a JSON text.

    Nearly every text is decided by counting quotes: a parsed value without duplicates has two for each of its strings and
    names, in addition to those within them. A text with other quotes, or with one that is written as a number, is parsed again,
    slowly.

    Args:
        content: the JSON text, which is valid.
        value: what a parser made of it, where the last field of a name counts.
    """
    if rb"\u0022" not in content and content.count(b'"') == _num_quotes(value):
        return None
    try:
        json.loads(content, object_pairs_hook=_unique_fields)
    except DuplicateField as error:
        return error
    except (
        ValueError,
        RecursionError,
    ):  # nested so deep that the record is refused for it, or bytes that orjson accepts
        return None
    return None


def _num_quotes(value: object) -> int:
    """Quotes in the JSON text of a value, if each quote within a string is written as one."""
    count = 0
    pending = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, str):
            count += 2 + item.count('"')
        elif isinstance(item, dict):
            for name in item:
                count += 2 + name.count('"')
            pending.extend(item.values())
        elif isinstance(item, list):
            pending.extend(item)
    return count


def _unique_fields(pairs: list[tuple[str, object]]) -> dict[str, object]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        duplicate = _first_duplicate(names)
        first, second = [number for number, name in enumerate(names, 1) if name == duplicate][:2]
        raise DuplicateField(f"fields {first} and {second} are both named '{duplicate}'")
    return fields


def _first_duplicate(names: Iterable[str]) -> str | None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None
