"""The card of an export, `retrodb.json`: it tells whether the export fits a model, and where the export comes from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import orjson

from retrodb.config import ExportParams
from retrodb.export.export_source import ExportSource
from retrodb.format.entries import Entry, QueriesEntry, SpaceEntry, TestsetEntry, dump_entry
from retrodb.format.json_codec import JsonObject, JsonValue, to_plain_object
from retrodb.format.parquet import read_table
from retrodb.store.digest import identity
from retrodb.store.whole_file import write_whole
from retrodb.view.view import View

CARD = "retrodb.json"
_LICENCE_FIELDS = ("license", "licence", "license_url", "licence_url")
_MAX_LICENCES = 20  # of a source: a field with more values is text, not a licence


@dataclass(frozen=True)
class TokenizerCard:
    """The tokenizer of the exported tokens."""

    name: str
    sha256: str
    vocab_size: int


@dataclass(frozen=True)
class ExportCard:
    """What a card says. Its only time is the snapshot's."""

    format: str
    id: str  # of the registration in the database
    path: str  # of the export, absolute, or its URL
    database: str  # absolute path of the database, or its URL
    snapshot: int
    clock: str  # time of the snapshot
    rows: int  # live rows of the table, or of all tables
    chunk_tokens: int
    tokenizer: TokenizerCard
    space: JsonObject  # name, fingerprint and parameters of the space
    table: JsonObject  # name of the table, and its entry in the snapshot
    queries: JsonObject | None  # entry of the query set; None for the database's own chunks
    sources: dict[str, list[str]]  # source -> licences that the metadata of its documents name
    testsets: list[str]
    subsets: dict[str, JsonObject] = field(default_factory=dict)  # subset -> `table`, for an export of several
    params: ExportParams = field(default_factory=ExportParams)

    @property
    def tables(self) -> dict[str, JsonObject]:
        """All exported tables by subset; "" is the only one of an export without subsets."""
        return self.subsets or {"": self.table}

    @property
    def table_name(self) -> str:
        """The name of the exported table; `subset=name` for each of several."""
        if not self.subsets:
            return str(self.table["name"])
        return " ".join(f"{subset}={table['name']}" for subset, table in self.subsets.items())


def make_card(source: ExportSource, to: str, path: str, num_rows: int, licences: dict[str, list[str]]) -> ExportCard:
    """The card of an export in the format `to`.

    Args:
        path: absolute, or a URL.
        num_rows: live rows of all tables.
        licences: by source.
    """
    table, view = source.table, source.view
    space = view.snapshot.existing(SpaceEntry, table.entry.space)
    settings, queries = source.settings, view.snapshot.entry(QueriesEntry, table.query_set)
    return ExportCard(
        format=to,
        id=identity("export", path)[:16],
        path=path,
        database=_full_path(view.storage.url),
        snapshot=view.snapshot.number,
        clock=view.snapshot.clock,
        rows=num_rows,
        chunk_tokens=source.chunk_tokens,
        tokenizer=TokenizerCard(settings.tokenizer_name, settings.tokenizer_sha256, settings.vocab_size),
        space={
            "name": table.entry.space,
            "fingerprint": space.fingerprint,
            **_without_nulls(to_plain_object(space.params)),
        },
        table=_table_fields(source),
        queries=None if queries is None else _without_nulls(_entry_fields(queries)),
        sources=licences,
        testsets=view.snapshot.names(TestsetEntry),
        subsets={subset: _table_fields(of_subset) for subset, of_subset in source.subsets.items()},
        params=source.params,
    )


def _full_path(database: str) -> str:
    """The path of a database from the root, or its URL."""
    return database if "://" in database else str(Path(database).absolute())


def _table_fields(source: ExportSource) -> dict[str, JsonValue]:
    return {"name": source.table.name, **_entry_fields(source.table.entry)}


def _entry_fields(entry: Entry) -> dict[str, JsonValue]:
    """The fields of an entry under their names in the snapshot."""
    value = dump_entry(entry)
    assert isinstance(value, dict)
    return value


def _without_nulls(fields: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    return {name: value for name, value in fields.items() if value is not None}


def write_card(folder: Path, card: ExportCard) -> None:
    """Write the card of an export."""
    write_whole(folder / CARD, orjson.dumps(card, option=orjson.OPT_INDENT_2))


def range_licences(view: View, first: int, count: int) -> tuple[str, list[str]]:
    """The source of a range of chunks, and the licences that the metadata of its documents name."""
    import pyarrow.compute as pc

    [record] = view.chunks.overlapping("documents", first, count)
    table = read_table(view.files.open(record), ["source", "metadata"])
    named = table.filter(pc.match_substring_regex(table.column("metadata"), "licen[sc]e", ignore_case=True))
    licences: set[str] = set()
    for metadata in named.column("metadata").to_pylist():
        fields = orjson.loads(metadata)
        if len(licences) < _MAX_LICENCES:
            licences |= {str(value) for name, value in fields.items() if name.lower() in _LICENCE_FIELDS and value}
    return str(table.column("source")[0]) if table.num_rows else "", sorted(licences)


def merged_licences(view: View, of_ranges: Iterable[tuple[str, Iterable[str]]]) -> dict[str, list[str]]:
    """Every source with the licences that its documents name, from those of its ranges in their order."""
    licences: dict[str, set[str]] = {name: set() for name in sorted(set(view.shards.source))}
    for source, names in ((source, names) for source, names in of_ranges if source):
        of_source = licences.setdefault(source, set())
        if len(of_source) < _MAX_LICENCES:
            of_source |= set(names)
    return {source: sorted(names) for source, names in licences.items()}
