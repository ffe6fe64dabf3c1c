"""Test-set files as items: an id, the text that must not leak, and the record it was made from.

JSON Lines (`.jsonl`, `.ndjson`) and Parquet give one item a record, a text file (`.txt`, `.md`) is one item. Any may
be compressed (`.gz`, `.zst`, `.bz2`). The text of a record is that of a template such as `{question} {choices}`;
without one it is the field `text`, or `content`, or `question` followed by `choices` where there are any. The id is
the field `id`, `_id` or `doc_id`, or else the number of the record in its file. Fields that are no strings: numbers
are written as they are, lists are joined by a space.
"""

from __future__ import annotations

import string
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa

from retrodb.errors import InputError, UsageError

MAX_FILE_BYTES = 1 << 32  # decompressed; a test set is no corpus
ID_FIELDS = ("id", "_id", "doc_id")
COMPRESSIONS = (".gz", ".zst", ".bz2")


@dataclass(frozen=True)
class TestItems:
    """The N items of a test set, in the order of the files."""

    __test__ = False  # pytest: no test class

    ids: tuple[str, ...]  # not necessarily unique
    texts: pa.LargeStringArray  # (N,)
    records: tuple[bytes, ...]  # the whole record as JSON

    def __len__(self) -> int:
        return len(self.ids)


def read_test_items(paths: Sequence[Path], text_template: str | None = None) -> TestItems:
    """Read test-set files.

    Raises:
        InputError: for a file that is not what its name says, is truncated or too large, or has a record without a
            needed field; with file and line.
        UsageError: for a template that names no field or uses more than plain names.
    """
    names = _template_fields(text_template) if text_template is not None else None
    ids, texts, records = [], [], []
    for path in paths:
        for number, where, record in _records(path):
            if text_template is None:
                texts.append(_default_text(record, where))
            else:
                values = {name: _field(record, name, where) for name in names or ()}
                texts.append(text_template.format_map(values))
            ids.append(next((str(record[name]) for name in ID_FIELDS if record.get(name) is not None), str(number)))
            records.append(orjson.dumps(record, default=str))
    return TestItems(tuple(ids), pa.array(texts, pa.large_string()), tuple(records))


def _records(path: Path) -> Iterator[tuple[int, str, Mapping[str, Any]]]:
    """Number from 1, place and fields of every record of a file."""
    suffix = Path(path.stem).suffix if path.suffix in COMPRESSIONS else path.suffix
    if suffix == ".parquet":
        yield from _parquet_records(path)
    elif suffix in (".jsonl", ".ndjson"):
        for number, line in enumerate(_read(path).split(b"\n"), 1):
            if line.strip():
                yield number, f"{path}:{number}", _parse(line, f"{path}:{number}")
    elif suffix in (".txt", ".md"):
        try:
            yield 1, str(path), {"id": path.name, "text": _read(path).decode()}
        except UnicodeDecodeError as error:
            raise InputError(f"not UTF-8 ({error})", where=str(path)) from error
    else:
        known = ".jsonl, .ndjson, .parquet, .txt, .md"
        raise InputError(f"no test-set format goes by '{suffix}'", where=str(path), remedy=f"Known are {known}.")


def _read(path: Path) -> bytes:
    try:
        with pa.input_stream(str(path), compression="detect") as stream:  # refuses truncated gzip and zstd
            data: bytes = stream.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError as error:
        raise InputError("no such file", where=str(path)) from error
    except OSError as error:
        raise InputError(f"cannot be read ({error})", where=str(path)) from error
    if len(data) > MAX_FILE_BYTES:
        raise InputError(f"more than {MAX_FILE_BYTES >> 30} GiB decompressed is no test set", where=str(path))
    return data


def _parse(line: bytes, where: str) -> Mapping[str, Any]:
    try:
        record = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise InputError(f"not valid JSON ({error})", where=where) from error
    if not isinstance(record, dict):
        raise InputError("not a JSON object", where=where)
    return record


def _parquet_records(path: Path) -> Iterator[tuple[int, str, Mapping[str, Any]]]:
    import pyarrow.parquet as pq

    try:
        rows = pq.read_table(str(path)).to_pylist()
    except FileNotFoundError as error:
        raise InputError("no such file", where=str(path)) from error
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"not a readable Parquet file ({error})", where=str(path)) from error
    for number, record in enumerate(rows, 1):
        yield number, f"{path}: row {number}", record


def _template_fields(template: str) -> list[str]:
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise UsageError(f"the text template '{template}' cannot be read ({error})") from error
    names = [name for _, name, _, _ in parts if name is not None]
    plain = all(not spec and not conversion for _, _, spec, conversion in parts)
    if not names or not plain or not all(name and not set(name) & set(".[") for name in names):
        raise UsageError(
            f"the text template '{template}' is not made of plain field names", remedy="Write '{question} {choices}'."
        )
    return names


def _default_text(record: Mapping[str, Any], where: str) -> str:
    for name in ("text", "content"):
        if record.get(name) is not None:
            return _field(record, name, where)
    if record.get("question") is None:
        fields = ", ".join(record)
        remedy = f"Name the fields with --text-template; the record has: {fields}."
        raise InputError("no field 'text', 'content' or 'question'", where=where, remedy=remedy)
    names = ["question", "choices"] if record.get("choices") is not None else ["question"]
    return " ".join(_field(record, name, where) for name in names)


def _field(record: Mapping[str, Any], name: str, where: str) -> str:
    value = record.get(name)
    if isinstance(value, list) and all(isinstance(part, str | int | float) for part in value):
        return " ".join(map(str, value))
    if isinstance(value, str | int | float):
        return str(value)
    fault = f"no field '{name}'" if value is None else f"field '{name}' is no text, number or list of them"
    raise InputError(fault, where=where, remedy=f"The record has: {', '.join(record)}.")
