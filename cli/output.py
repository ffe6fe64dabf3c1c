"""How results are printed: tables and key-value lines for people, JSON lines for programs. Commands do not format.

Results go to stdout. Notes and errors go to stderr. The unit at the end of a field name (`_bytes`, `_s`, `_per_s`) decides
how the console shows the value. Integers get thousands separators. JSON always has the plain number.

All text for people passes `printable`, which escapes what could control a terminal. JSON has the text as it is.
"""

from __future__ import annotations

import dataclasses
import os
import re
import secrets
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import time
from decimal import Decimal
from typing import ClassVar, Protocol, TypeVar

import click

from retrodb.printable import escape


class Record(Protocol):
    """Any dataclass instance, such as the results of `Database` methods."""

    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[object]]]


R = TypeVar("R", bound=Record)

# A style stands in a text as a mark that no text from outside can contain, until `printable` replaces it.
_MARK = f"\x1b{secrets.token_hex(8)};"
_STYLED = re.compile(f"{_MARK}([0-9]*)m")
_MIN_WRAPPED = 12  # a column is not wrapped to fewer characters
_TIMES = ("clock", "expired_at")  # ISO 8601 in UTC, shown to the second
_COLOURS = {"red": 31, "green": 32, "yellow": 33}


class Output(Protocol):
    """Where a command prints.

    A `render` function turns a record into text for people, if names and values are not enough (`render.py`).
    """

    def result(self, record: R, render: Callable[[R], str] | None = None) -> None:
        """Print one result."""

    def rows(
        self,
        records: Iterable[R],
        render: Callable[[R], str] | None = None,
        *,
        empty: str = "There is nothing to list.",
    ) -> None:
        """Print several results of one class: as a table, or each with `render`. For people, `empty` says that there are none."""

    def table(self, kind: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
        """Print rows whose columns are known at run time only. `kind` is their `message_type`."""

    def note(self, message: str) -> None:
        """Print a note on stderr."""

    def error(self, code: int, message: str) -> None:
        """Print on stderr why the command ends with exit code `code`."""


class ConsoleOutput:
    """Output for people: aligned columns, readable units, and colour on a terminal."""

    def result(self, record: R, render: Callable[[R], str] | None = None) -> None:
        _print(render(record) if render else render_fields(_fields(record), terminal_width()))

    def rows(
        self,
        records: Iterable[R],
        render: Callable[[R], str] | None = None,
        *,
        empty: str = "There is nothing to list.",
    ) -> None:
        records = list(records)
        if not records:
            self.note(empty)
        elif render:
            _print("\n\n".join(map(render, records)))
        else:
            _print(render_table([_fields(record) for record in records], terminal_width()))

    def table(self, kind: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
        records = [dict(zip(columns, row, strict=True)) for row in rows]
        if records:
            # Programs that read lines get whole rows.
            _print(render_table(records, terminal_width() if sys.stdout.isatty() else None, label=escape))
        else:
            self.note(f"The query gave no rows. Its columns are: {', '.join(columns)}.")

    def note(self, message: str) -> None:
        _print(message, err=True)

    def error(self, code: int, message: str) -> None:
        _print(f"{style('Error:', fg='red', bold=True)} {escape(message)}", err=True)


class JsonOutput:
    """Output for programs: one JSON object per line, with a `message_type`."""

    def result(self, record: R, render: Callable[[R], str] | None = None) -> None:
        click.echo(_json_line(message_type(type(record)), _fields(record)))

    def rows(
        self,
        records: Iterable[R],
        render: Callable[[R], str] | None = None,
        *,
        empty: str = "There is nothing to list.",
    ) -> None:
        for record in records:
            self.result(record)

    def table(self, kind: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
        names = [f"{name}_1" if name == "message_type" else name for name in columns]
        for row in rows:
            click.echo(_json_line(kind, dict(zip(names, row, strict=True))))

    def note(self, message: str) -> None:
        click.echo(_json_line("note", {"message": message}), err=True)

    def error(self, code: int, message: str) -> None:
        click.echo(_json_line("error", {"code": code, "message": message}), err=True)


def message_type(kind: type[Record]) -> str:
    """The name of a record class in JSON: the class name in snake case."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", kind.__name__).lower()


def render_fields(fields: Mapping[str, object], width: int | None = None) -> str:
    """Lines with aligned names and values. A mapping is indented below its name. A sequence of records is a table."""
    plain = {name: format_value(name, value) for name, value in fields.items() if not _is_nested(value)}
    label_width = max(map(len, plain), default=0)
    lines = []
    for name, value in fields.items():
        label = _label(name)
        if name in plain:
            lines.append(f"{label:<{label_width}}  {plain[name]}".rstrip())
        else:
            lines += [f"{label}:", textwrap.indent(_render_nested(value, width and width - 2), "  ")]
    return "\n".join(lines)


def _label(name: str) -> str:
    """The name of a field as people read it: `num_chunks` is shown as "chunks"."""
    return escape(name.removeprefix("num_").replace("_", " "))


def render_table(
    rows: Sequence[Mapping[str, object]], width: int | None = None, label: Callable[[str], str] = _label
) -> str:
    """Columns below their names. Numbers are aligned to the right.

    Args:
        width: longest line. A wider table is cut into several, which all begin with the first column.
        label: gives the heading of a column from its name.
    """
    if not rows:
        return ""
    columns = [[label(name), *(format_value(name, row[name]) for row in rows)] for name in rows[0]]
    is_number = [all(isinstance(row[name], int | float) for row in rows) for name in rows[0]]
    padded = [_pad(cells, right) for cells, right in zip(columns, is_number, strict=True)]
    return "\n\n".join(_lines_of(block, width) for block in _blocks(padded, width))


def _blocks(columns: Sequence[Sequence[str]], width: int | None) -> list[list[Sequence[str]]]:
    """The columns in blocks that are not wider than `width` if possible, each with the first column."""
    first, blocks = columns[0], [[columns[0]]]
    for column in columns[1:]:
        is_full = sum(len(other[0]) + 2 for other in blocks[-1]) + len(column[0]) > (width or sys.maxsize)
        if is_full and len(blocks[-1]) > 1:
            blocks.append([first])
        blocks[-1].append(column)
    return blocks


def _lines_of(columns: Sequence[Sequence[str]], width: int | None) -> str:
    """The lines of a block. A last column that is too wide is wrapped."""
    left = sum(len(column[0]) + 2 for column in columns[:-1])
    room = (width or sys.maxsize) - left
    if left and len(columns[-1][0]) > room >= _MIN_WRAPPED:
        indent = " " * left
        wrapped = [f"\n{indent}".join(textwrap.wrap(cell.strip(), room) or [""]) for cell in columns[-1]]
        columns = [*columns[:-1], wrapped]
    return "\n".join("  ".join(line).rstrip() for line in zip(*columns, strict=True))


def format_value(name: str, value: object) -> str:
    """A value as people read it. The end of the field name is the unit."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        if name.endswith("_bytes"):
            return format_size(value)
        if name.endswith("_per_s"):
            return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
        if name.endswith("_s"):
            return format_duration(value)
        return format_count(value) if isinstance(value, int) else f"{value:.4g}"
    if name in _TIMES and isinstance(value, str):
        return escape(value[:19].replace("T", " "))
    if isinstance(value, list | tuple):
        return ", ".join(format_value(name, element) for element in value) or "-"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {format_value(key, element)}" for key, element in value.items() if element) or "-"
    return escape(_hexadecimal(value) if isinstance(value, bytes | bytearray | memoryview) else str(value))


def format_count(count: int) -> str:
    """12,345,678"""
    return f"{count:,}"


def format_size(size_bytes: float) -> str:
    """A size on disk in decimal units: 999 B, 1.5 kB, 23.4 MB."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if abs(size_bytes) < (1000 if unit == "B" else 999.95):
            return f"{size_bytes:.0f} {unit}" if unit == "B" else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1000
    return f"{size_bytes:,.1f} PB"


def format_duration(elapsed_s: float) -> str:
    """A duration with at most two units: 12 ms, 3.2 s, 4 min 05 s, 2 h 10 min, 3 d 4 h."""
    if elapsed_s < 0.9995:
        return f"{elapsed_s * 1000:.0f} ms"
    if elapsed_s < 59.95:
        return f"{elapsed_s:.1f} s"
    seconds = round(elapsed_s)
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02} s"
    if seconds < 86400:
        return f"{seconds // 3600} h {seconds % 3600 // 60:02} min"
    return f"{seconds // 86400} d {seconds % 86400 // 3600} h"


def _fields(record: Record) -> dict[str, object]:
    return {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}


def terminal_width() -> int:
    """The width of the terminal, or of one of 80 columns where there is none."""
    return shutil.get_terminal_size((80, 24)).columns


def _is_nested(value: object) -> bool:
    if isinstance(value, list | tuple):
        return bool(value) and all(dataclasses.is_dataclass(element) for element in value)
    return isinstance(value, Mapping) or dataclasses.is_dataclass(value)


def _render_nested(value: object, width: int | None) -> str:
    if isinstance(value, list | tuple):
        return render_table([_fields(element) for element in value], width)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return render_fields(_fields(value), width) or "-"
    return render_fields(value, width) if isinstance(value, Mapping) and value else "-"


def _pad(cells: Sequence[str], right: bool) -> list[str]:
    width = max(map(len, cells))
    return [cell.rjust(width) if right else cell.ljust(width) for cell in cells]


def style(text: str, *, fg: str | None = None, bold: bool = False, dim: bool = False, underline: bool = False) -> str:
    """The text in a colour or another style, on a terminal that shows it."""
    codes = [_COLOURS[fg]] if fg else []
    codes += [code for code, is_on in ((1, bold), (2, dim), (4, underline)) if is_on]
    return f"{''.join(f'{_MARK}{code}m' for code in codes)}{text}{_MARK}0m" if codes else text


def document_name(source: str, doc_id: str) -> str:
    """How a document is shown: its source and its id."""
    return escape(f"{source}/{doc_id}")


def printable(text: str) -> str:
    """Text for people as it is written: escaped, except for line feeds, tabs and our own styles."""
    pieces = _STYLED.split(text)  # text, codes, text, codes, ..., text
    pieces[::2] = [escape(piece, keep="\n\t") for piece in pieces[::2]]
    pieces[1::2] = [f"\x1b[{codes}m" for codes in pieces[1::2]]
    return "".join(pieces)


def _print(text: str, *, err: bool = False) -> None:
    # click removes colour if there is no terminal. It does not know NO_COLOR (no-color.org).
    if text:
        encoding = getattr(sys.stderr if err else sys.stdout, "encoding", None) or "utf-8"
        shown = printable(text).encode(encoding, "backslashreplace").decode(encoding)
        click.echo(shown, err=err, color=False if os.environ.get("NO_COLOR") else None)


def _json_line(kind: str, fields: Mapping[str, object]) -> bytes:
    import orjson

    options = orjson.OPT_NON_STR_KEYS
    try:
        return orjson.dumps({"message_type": kind, **fields}, default=_json_value, option=options)
    except TypeError:  # integers above 64 bits, lone surrogates, keys of maps that are no text
        return orjson.dumps(_json_tree({"message_type": kind, **fields}), default=_json_value, option=options)


def _json_value(value: object) -> object:
    """A value that JSON does not have: exact numbers as numbers, bytes in hexadecimal, anything else as text."""
    import orjson

    if isinstance(value, int):
        return orjson.Fragment(str(value))
    if isinstance(value, Decimal):
        return orjson.Fragment(str(value)) if value.is_finite() else None
    if isinstance(value, bytes | bytearray | memoryview):
        return _hexadecimal(value)
    return list(value) if isinstance(value, set | frozenset) else _unicode(str(value))


def _json_tree(value: object) -> object:
    """The value with what orjson refuses replaced, at any depth."""
    if isinstance(value, str):
        return _unicode(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return value if -(1 << 63) <= value < 1 << 64 else _json_value(value)
    if isinstance(value, Mapping):
        return {_unicode(str(key)): _json_tree(element) for key, element in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_json_tree(element) for element in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _json_tree(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, time) and value.tzinfo is not None:
        return value.isoformat()
    return value


def _hexadecimal(value: bytes | bytearray | memoryview) -> str:
    return bytes(value).hex()


def _unicode(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()
