"""How results are printed: tables and key-value lines for people, JSON lines for programs. Commands do not format.

Results go to stdout. Notes and errors go to stderr. The unit at the end of a field name (`_bytes`, `_s`, `_per_s`) decides
how the console shows the value. Integers get thousands separators. JSON always has the plain number.
"""

from __future__ import annotations

import dataclasses
import os
import re
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import ClassVar, Protocol, TypeVar

import click


class Record(Protocol):
    """Any dataclass instance, such as the results of `Database` methods."""

    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[object]]]


R = TypeVar("R", bound=Record)


class Output(Protocol):
    """Where a command prints.

    A `render` function turns a record into text for people, if names and values are not enough (`render.py`).
    """

    def result(self, record: R, render: Callable[[R], str] | None = None) -> None:
        """Print one result."""

    def rows(self, records: Iterable[R], render: Callable[[R], str] | None = None) -> None:
        """Print several results of one class: as a table, or each with `render`."""

    def table(self, kind: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
        """Print rows whose columns are known at run time only. `kind` is their `message_type`."""

    def note(self, message: str) -> None:
        """Print a note on stderr."""

    def error(self, code: int, message: str) -> None:
        """Print on stderr why the command ends with exit code `code`."""


class ConsoleOutput:
    """Output for people: aligned columns, readable units, and colour on a terminal."""

    def result(self, record: R, render: Callable[[R], str] | None = None) -> None:
        _print(render(record) if render else render_fields(_fields(record)))

    def rows(self, records: Iterable[R], render: Callable[[R], str] | None = None) -> None:
        if render:
            _print("\n\n".join(map(render, records)))
        else:
            _print(render_table([_fields(record) for record in records]))

    def table(self, kind: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
        _print(render_table([dict(zip(columns, row, strict=True)) for row in rows], label=str))

    def note(self, message: str) -> None:
        _print(message, err=True)

    def error(self, code: int, message: str) -> None:
        _print(f"{click.style('Error:', fg='red', bold=True)} {message}", err=True)


class JsonOutput:
    """Output for programs: one JSON object per line, with a `message_type`."""

    def result(self, record: R, render: Callable[[R], str] | None = None) -> None:
        click.echo(_json_line(message_type(type(record)), _fields(record)))

    def rows(self, records: Iterable[R], render: Callable[[R], str] | None = None) -> None:
        for record in records:
            self.result(record)

    def table(self, kind: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
        for row in rows:
            click.echo(_json_line(kind, dict(zip(columns, row, strict=True))))

    def note(self, message: str) -> None:
        click.echo(_json_line("note", {"message": message}), err=True)

    def error(self, code: int, message: str) -> None:
        click.echo(_json_line("error", {"code": code, "message": message}), err=True)


def message_type(kind: type[Record]) -> str:
    """The name of a record class in JSON: the class name in snake case."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", kind.__name__).lower()


def render_fields(fields: Mapping[str, object]) -> str:
    """Lines with aligned names and values. A mapping is indented below its name. A sequence of records is a table."""
    plain = {name: format_value(name, value) for name, value in fields.items() if not _is_nested(value)}
    width = max(map(len, plain), default=0)
    lines = []
    for name, value in fields.items():
        label = _label(name)
        if name in plain:
            lines.append(f"{label:<{width}}  {plain[name]}".rstrip())
        else:
            lines += [f"{label}:", textwrap.indent(_render_nested(value), "  ")]
    return "\n".join(lines)


def render_table(rows: Sequence[Mapping[str, object]], label: Callable[[str], str] | None = None) -> str:
    """Columns below their names. Numbers are aligned to the right."""
    if not rows:
        return ""
    columns = [
        [(label or _label)(name), *(_one_line(format_value(name, row[name])) for row in rows)] for name in rows[0]
    ]
    is_number = [all(isinstance(row[name], int | float) for row in rows) for name in rows[0]]
    padded = [_pad(cells, right) for cells, right in zip(columns, is_number, strict=True)]
    return "\n".join("  ".join(line).rstrip() for line in zip(*padded, strict=True))


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
    if isinstance(value, list | tuple):
        return ", ".join(format_value(name, element) for element in value) or "-"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {format_value(key, element)}" for key, element in value.items() if element) or "-"
    return str(value)


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


def _label(name: str) -> str:
    """The name of a field as people read it: `num_chunks` is shown as "chunks"."""
    return name.removeprefix("num_").replace("_", " ")


def _is_nested(value: object) -> bool:
    if isinstance(value, list | tuple):
        return bool(value) and all(dataclasses.is_dataclass(element) for element in value)
    return isinstance(value, Mapping) or dataclasses.is_dataclass(value)


def _render_nested(value: object) -> str:
    if isinstance(value, list | tuple):
        return render_table([_fields(element) for element in value])
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return render_fields(_fields(value)) or "-"
    return render_fields(value) if isinstance(value, Mapping) and value else "-"


def _one_line(text: str) -> str:
    return " ".join(text.split()) if "\n" in text else text


def _pad(cells: Sequence[str], right: bool) -> list[str]:
    width = max(map(len, cells))
    return [cell.rjust(width) if right else cell.ljust(width) for cell in cells]


def _print(text: str, *, err: bool = False) -> None:
    # click removes colour if there is no terminal. It does not know NO_COLOR (no-color.org).
    if text:
        click.echo(text, err=err, color=False if os.environ.get("NO_COLOR") else None)


def _json_line(kind: str, fields: Mapping[str, object]) -> bytes:
    import orjson

    # Values that JSON does not have, such as paths, are printed as text.
    return orjson.dumps({"message_type": kind, **fields}, default=str, option=orjson.OPT_NON_STR_KEYS)
