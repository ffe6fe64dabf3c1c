"""The items of test-set files: an id, the text that must not leak, and the record that it comes from.

JSON Lines (`.jsonl`, `.ndjson`) and Parquet have one item per record. A text file (`.txt`, `.md`) is one item. JSON Lines
and text may be compressed (`.gz`, `.zst`, `.bz2`, `.xz`). The text of a record follows from a template such as `{question}
{choices}`. Without a template it is the field `text` or `content`, or `question` followed by `choices` if there are any. The
id is the field `id`, `_id` or `doc_id`, or else the number of the record in its file. Numbers are written as they are, and
lists are joined with spaces.
"""

from __future__ import annotations

import string
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import orjson
import pyarrow as pa

from retrodb.corpus.readers.arrow import read_parquet_records
from retrodb.corpus.readers.jsonl import read_json_objects
from retrodb.corpus.streams import BLOCK_BYTES, COMPRESSION_SUFFIXES, ByteSource, open_decompressed
from retrodb.errors import InputError, UsageError

MAX_FILE_BYTES = 1 << 32  # decompressed; a larger file is not a test set
ID_FIELDS = ("id", "_id", "doc_id")
MIN_TEXT_WORDS = 13  # a shingle, by default: a shorter text cannot share one


@dataclass(frozen=True)
class TestItems:
    """The N items of a test set, in the order of the files."""

    __test__ = False  # not a test class of pytest

    ids: tuple[str, ...]  # not necessarily unique
    texts: pa.LargeStringArray  # (N,)
    records: tuple[bytes, ...]  # the whole record as JSON
    unused_text_fields: tuple[str, ...]  # without a template: other fields with `MIN_TEXT_WORDS` words or more

    def __len__(self) -> int:
        return len(self.ids)


def read_test_items(paths: Sequence[Path], text_template: str | None = None) -> TestItems:
    """Read test-set files.

    Raises:
        InputError: a file is not of the format of its suffix, is truncated or too large, or has a record without a field
            that is needed; names file and line.
        UsageError: a template without a field, or with more than plain field names.
    """
    names = _template_fields(text_template) if text_template is not None else None
    ids, texts, records = [], [], []
    unused: dict[str, None] = {}  # in the order of the fields
    for path in paths:
        for number, where, record in _records(path):
            if text_template is None:
                default = _default_fields(record, where)
                texts.append(" ".join(_field(record, name, where) for name in default))
                unused |= dict.fromkeys(name for name in record if name not in default and _is_long(record[name]))
            else:
                values = {name: _field(record, name, where) for name in names or ()}
                texts.append(text_template.format_map(values))
            ids.append(next((str(record[name]) for name in ID_FIELDS if record.get(name) is not None), str(number)))
            records.append(orjson.dumps(record, default=str))
    return TestItems(tuple(ids), pa.array(texts, pa.large_string()), tuple(records), tuple(unused))


def _is_long(value: object) -> bool:
    return isinstance(value, str) and len(value.split(maxsplit=MIN_TEXT_WORDS - 1)) == MIN_TEXT_WORDS


def _records(path: Path) -> Iterator[tuple[int, str, Mapping[str, object]]]:
    """Number from 1, location and fields of every record of a file."""
    suffix = Path(path.stem).suffix if path.suffix in COMPRESSION_SUFFIXES else path.suffix
    if suffix == ".parquet":
        for number, record in read_parquet_records(str(path)):
            yield number, f"{path}: row {number}", record
    elif suffix in (".jsonl", ".ndjson"):
        with open_decompressed(path) as stream:
            for number, record in read_json_objects(_SizeLimit(stream, path), str(path)):
                yield number, f"{path}:{number}", record
    elif suffix in (".txt", ".md"):
        yield 1, str(path), {"id": path.name, "text": _read_text(path)}
    else:
        known = ".jsonl, .ndjson, .parquet, .txt, .md"
        raise InputError(f"unknown test-set format '{suffix}'", where=str(path), remedy=f"Use one of {known}.")


def _read_text(path: Path) -> str:
    with open_decompressed(path) as stream:
        limited = _SizeLimit(stream, path)
        content = b"".join(iter(lambda: limited.read(BLOCK_BYTES), b""))
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise InputError(f"not UTF-8 ({error})", where=str(path)) from error


class _SizeLimit:
    """A stream that raises an InputError after `MAX_FILE_BYTES`."""

    def __init__(self, stream: ByteSource, path: Path) -> None:
        self._stream, self._path, self._num_bytes = stream, path, 0

    def read(self, size: int = -1, /) -> bytes:
        block = self._stream.read(size)
        self._num_bytes += len(block)
        if self._num_bytes > MAX_FILE_BYTES:
            what = f"larger than {MAX_FILE_BYTES >> 30} GiB when decompressed, too large for a test set"
            raise InputError(what, where=str(self._path))
        return block


def _template_fields(template: str) -> list[str]:
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise UsageError(f"the text template '{template}' cannot be read ({error})") from error
    names = [name for _, name, _, _ in parts if name is not None]
    is_plain = all(not spec and not conversion for _, _, spec, conversion in parts)
    if not names or not is_plain or not all(name and not set(name) & set(".[") for name in names):
        raise UsageError(
            f"the text template '{template}' needs plain field names", remedy="Write '{question} {choices}'."
        )
    return names


def _default_fields(record: Mapping[str, object], where: str) -> list[str]:
    """The fields that are the text of a record when there is no template."""
    for name in ("text", "content"):
        if record.get(name) is not None:
            return [name]
    if record.get("question") is None:
        fields = ", ".join(record)
        remedy = (
            f"The record has: {fields}. Rename the field with the text to 'text', or name it with "
            "'retrodb dedup --text-template' or 'retrodb queries add --text-template'."
        )
        raise InputError("no field 'text', 'content' or 'question'", where=where, remedy=remedy)
    return ["question", "choices"] if record.get("choices") is not None else ["question"]


def _field(record: Mapping[str, object], name: str, where: str) -> str:
    value = record.get(name)
    if isinstance(value, list) and all(isinstance(part, str | int | float) for part in value):
        return " ".join(map(str, value))
    if isinstance(value, str | int | float):
        return str(value)
    fault = f"no field '{name}'" if value is None else f"field '{name}' is not a text, a number, or a list of them"
    raise InputError(fault, where=where, remedy=f"The record has: {', '.join(record)}.")
