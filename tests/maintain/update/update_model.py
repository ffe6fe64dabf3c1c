"""A folder of input files, a recipe, and the contents of a database that follows it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from made_documents import write_documents

import retrodb
from retrodb.config import dump_toml
from retrodb.database import Database

CLOCK = "2026-01-01T00:00:00.000000+00:00"


class Site:
    """Input files of two sources, and a database that is kept up to date with them."""

    def __init__(self, folder: Path, tokenizer: Path, name: str = "db") -> None:
        self.folder, self.tokenizer, self.name = folder, tokenizer, name
        self.recipe: dict[str, Any] = {
            "sources": {s: {"inputs": [f"{s}.jsonl"], "mirror": True} for s in ("left", "right")},
            "index": {"factory": "Flat"},
            "neighbours": {"self": {"k": 2, "spare_neighbours": 2}},
        }

    @property
    def path(self) -> Path:
        return self.folder / self.name

    def write(self, source: str, documents: Mapping[str, str]) -> Path:
        return write_documents(self.folder / f"{source}.jsonl", documents)

    def config(self) -> Path:
        path = self.folder / "recipe.toml"
        path.write_text(dump_toml(self.recipe))
        return path

    def create(self) -> Database:
        return retrodb.create(self.path, tokenizer=str(self.tokenizer), encoder="hashing:32", clock=CLOCK)

    def update(self, db: Database | None = None, **options: Any) -> Any:
        return (db or retrodb.open(self.path, clock=CLOCK)).update(self.config(), **options)


def live_documents(db: Database) -> dict[tuple[str, str], str]:
    """Source and id -> text of what is live."""
    chunks, found = db.view().chunks, {}
    for record in chunks.ranges:
        layout = chunks.layout(record)
        firsts = record.first_chunk + layout.first_row
        for first, count, document in zip(firsts, layout.num_chunks, chunks.documents(firsts), strict=True):
            ids = np.arange(first, first + count)
            if document and chunks.is_live(ids).all():
                found[document["source"], document["doc_id"]] = "".join(chunks.texts(ids))
    return found


def answers(db: Database, queries: list[str], k: int = 5) -> list[list[tuple[float, str]]]:
    """Scores and texts of a search; chunk ids follow from a database's history and are left out."""
    return [sorted((round(hit.score, 3), hit.text) for hit in hits) for hits in db.search(queries, k=k)]


def neighbour_texts(db: Database, table: str = "self") -> dict[str, list[float]]:
    """The distances of the first k neighbours of every chunk, by the chunk's document, place and text."""
    source = db.neighbour_table(table)
    rows = source.rows()
    chunks = db.view().chunks
    _, distances = source.read(rows)
    names = [f"{d['source']}/{d['doc_id']}" for d in chunks.documents(rows)]
    keys = [f"{name} {text}" for name, text in zip(names, chunks.texts(rows), strict=True)]
    return {key: np.round(own, 3).tolist() for key, own in zip(keys, distances, strict=True)}
