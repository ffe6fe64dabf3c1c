"""How results look: tables and key-value lines for people, JSON lines for programs. Commands contain no formatting.

Results go to stdout; notes and errors go to stderr. A unit at the end of a field's name says how the console shows it:
`_bytes`, `_s`, `_per_s`; integers get thousands separators. JSON always has the plain number.
"""

from __future__ import annotations

import dataclasses
import os
import re
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, Protocol, TypeAlias

import click


class Record(Protocol):
    """Any dataclass instance: what `Database` methods return."""

    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]


Rendering: TypeAlias = Callable[[Any], str]
"""What turns a record into text for people, where names and values are not enough; see `render.py`."""


class Output(Protocol):
    """Where a command puts what it has to say."""

    def result(self, record: Record, rendering: Rendering | None = None) -> None:
        """Show one result."""

    def rows(self, records: Iterable[Record], rendering: Rendering | None = None) -> None:
        """Show many results of one kind: a table, or one rendered after the other."""

    def table(self, kind: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
        """Show rows whose columns only the data knows."""

    def note(self, message: str) -> None:
        """Say something beside the results, on stderr."""

    def error(self, code: int, message: str) -> None:
        """Say why the command ends with exit code `code`, on stderr."""


class ConsoleOutput:
    """For people: aligned, human units, colour when the terminal wants it."""

    def result(self, record: Record, rendering: Rendering | None = None) -> None:
        _print(rendering(record) if rendering else render_fields(_fields(record)))

    def rows(self, records: Iterable[Record], rendering: Rendering | None = None) -> None:
        if rendering:
            _print("\n\n".join(map(rendering, records)))
        else:
            _print(render_table([_fields(record) for record in records]))

    def table(self, kind: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
        _print(render_table([dict(zip(columns, row, strict=True)) for row in rows]))

    def note(self, message: str) -> None:
        _print(message, err=True)

    def error(self, code: int, message: str) -> None:
        _print(f"{click.style('Error:', fg='red', bold=True)} {message}", err=True)


class JsonOutput:
    """For programs: one JSON object a line, each with its `message_type`; fields are only ever added."""

    def result(self, record: Record, rendering: Rendering | None = None) -> None:
        click.echo(_json_line(message_type(record), _fields(record)))

    def rows(self, records: Iterable[Record], rendering: Rendering | None = None) -> None:
        for record in records:
            self.result(record)

    def table(self, kind: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
        for row in rows:
            click.echo(_json_line(kind, dict(zip(columns, row, strict=True))))

    def note(self, message: str) -> None:
        click.echo(_json_line("note", {"message": message}), err=True)

    def error(self, code: int, message: str) -> None:
        click.echo(_json_line("error", {"code": code, "message": message}), err=True)


def message_type(record: Record) -> str:
    """The name of a record's kind in JSON: its class name in snake case."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", type(record).__name__).lower()


def render_fields(fields: Mapping[str, object]) -> str:
    """Lines of aligned names and values; a mapping is indented under its name, a sequence of records is a table."""
    plain = {name: format_value(name, value) for name, value in fields.items() if not _is_nested(value)}
    width = max(map(len, plain), default=0)
    lines = []
    for name, value in fields.items():
        label = name.replace("_", " ")
        if name in plain:
            lines.append(f"{label:<{width}}  {plain[name]}".rstrip())
        else:
            lines += [f"{label}:", textwrap.indent(_render_nested(value), "  ")]
    return "\n".join(lines)


def render_table(rows: Sequence[Mapping[str, object]]) -> str:
    """Columns under their names; numbers are aligned to the right."""
    if not rows:
        return ""
    columns = [
        [name.replace("_", " "), *(_one_line(format_value(name, row[name])) for row in rows)] for name in rows[0]
    ]
    is_number = [all(isinstance(row[name], int | float) for row in rows) for name in rows[0]]
    padded = [_pad(cells, right) for cells, right in zip(columns, is_number, strict=True)]
    return "\n".join("  ".join(line).rstrip() for line in zip(*padded, strict=True))


def format_value(name: str, value: object) -> str:
    """A value as people read it; the ending of its field's name is its unit."""
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
    if isinstance(value, list | tuple):
        return ", ".join(format_value(name, each) for each in value) or "-"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {format_value(key, each)}" for key, each in value.items() if each) or "-"
    return str(value)


def format_count(count: int) -> str:
    """12,345,678"""
    return f"{count:,}"


def format_size(size_bytes: float) -> str:
    """A size in decimal units: 999 B, 1.5 kB, 23.4 MB."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if abs(size_bytes) < (1000 if unit == "B" else 999.95):
            return f"{size_bytes:.0f} {unit}" if unit == "B" else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1000
    return f"{size_bytes:,.1f} PB"


def format_duration(elapsed_s: float) -> str:
    """A time with two units at most: 12 ms, 3.2 s, 4 min 05 s, 2 h 10 min, 3 d 4 h."""
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


def _is_nested(value: object) -> bool:
    if isinstance(value, list | tuple):
        return bool(value) and all(dataclasses.is_dataclass(each) for each in value)
    return isinstance(value, Mapping) or dataclasses.is_dataclass(value)


def _render_nested(value: Any) -> str:
    if isinstance(value, list | tuple):
        return render_table([_fields(each) for each in value])
    return render_fields(value if isinstance(value, Mapping) else _fields(value)) or "-"


def _one_line(text: str) -> str:
    return " ".join(text.split()) if "\n" in text else text


def _pad(cells: Sequence[str], right: bool) -> list[str]:
    width = max(map(len, cells))
    return [cell.rjust(width) if right else cell.ljust(width) for cell in cells]


def _print(text: str, *, err: bool = False) -> None:
    # click drops colour where there is no terminal; NO_COLOR (no-color.org) is ours to respect.
    if text:
        click.echo(text, err=err, color=False if os.environ.get("NO_COLOR") else None)


def _json_line(kind: str, fields: Mapping[str, object]) -> bytes:
    import orjson

    # Paths, fractions and the like appear as their text.
    return orjson.dumps({"message_type": kind, **fields}, default=str, option=orjson.OPT_NON_STR_KEYS)
