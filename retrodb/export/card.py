"""The card of an export, `retrodb.json`: enough to tell whether it fits a model, and to find its origin."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson

from retrodb.export.source import ExportSource
from retrodb.format.entries import QueriesEntry, SpaceEntry, TestsetEntry
from retrodb.format.json_values import to_plain, to_plain_object
from retrodb.format.parquet import read_table
from retrodb.store.digest import identity
from retrodb.view.view import View

_LICENCE_FIELDS = ("license", "licence", "license_url", "licence_url")
_MAX_LICENCES = 20  # of a source: more are no licence field but text


def card_of(source: ExportSource, to: str, out: Path) -> dict[str, Any]:
    """Plain values; the only time in them is the snapshot's."""
    table, view = source.table, source.view
    space = view.snapshot.existing(SpaceEntry, table.entry.space)
    path = str(out.absolute())
    return {
        "format": to,
        "id": identity("export", path)[:16],
        "path": path,
        "database": str(Path(view.storage.url).absolute()),
        "snapshot": view.snapshot.number,
        "clock": view.snapshot.clock,
        "rows": len(table.rows()),
        "chunk_tokens": source.chunk_tokens,
        "tokenizer": {
            "name": source.settings.tokenizer_name,
            "sha256": source.settings.tokenizer_sha256,
            "vocab_size": source.settings.vocab_size,
        },
        "space": {"name": table.entry.space, "fingerprint": space.fingerprint, **to_plain_object(space.params)},
        "table": {"name": table.name, **to_plain_object(table.entry)},
        "queries": to_plain(view.snapshot.entry(QueriesEntry, table.query_set)),
        "sources": licences(view),
        "testsets": view.snapshot.names(TestsetEntry),
    }


def licences(view: View) -> dict[str, list[str]]:
    """Every source with the licences that the metadata of its documents name."""
    import pyarrow.compute as pc

    found: dict[str, set[str]] = {name: set() for name in sorted(set(view.shards.source))}
    for record in view.chunks.ranges:
        table = read_table(view.files.open(record), ["source", "metadata"])
        named = table.filter(pc.match_substring_regex(table.column("metadata"), "licen[sc]e", ignore_case=True))
        for source, metadata in zip(*(named.column(name).to_pylist() for name in ("source", "metadata")), strict=True):
            fields = orjson.loads(metadata)
            own = found.setdefault(source, set())
            if len(own) < _MAX_LICENCES:
                own |= {str(value) for name, value in fields.items() if name.lower() in _LICENCE_FIELDS and value}
    return {source: sorted(names) for source, names in found.items()}
