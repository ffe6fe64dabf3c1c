"""New databases for the tests of ingest, and their documents as plain dictionaries to compare with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from retrodb.config import IngestParams, InitParams
from retrodb.corpus.train_tokenizer import train_byte_bpe
from retrodb.format.entries import QueriesEntry
from retrodb.format.parquet import read_table
from retrodb.stages.context import Context
from retrodb.stages.ingest.change import HELD_OUT_SET
from retrodb.stages.ingest.command import run_ingest
from retrodb.stages.ingest.plan import IngestResult
from retrodb.stages.init import run_init
from retrodb.store.open_storage import open_storage
from retrodb.view.chunk_set import ChunkSet

CLOCK = "2026-01-01T00:00:00.000000+00:00"


def new_database(path: Path) -> Context:
    """An empty database of 8-token chunks under a byte-level BPE of 400 tokens."""
    file = path.parent / "tokenizer.json"
    file.write_bytes(_tokenizer())
    context = Context(open_storage(str(path)), clock=CLOCK)
    run_init(context, InitParams(str(file), chunk_tokens=8, min_key_tokens=2))
    return context


@cache
def _tokenizer() -> bytes:
    return train_byte_bpe(["The document holds words, and their continuations. 数据库检索。\n"] * 20, 400).to_bytes()


def write_json_lines(path: Path, documents: Mapping[str, str]) -> Path:
    path.write_text("".join(json.dumps({"id": key, "text": text}) + "\n" for key, text in documents.items()))
    return path


def ingest(
    context: Context,
    *inputs: Path | str,
    source: str = "s",
    dry_run: bool = False,
    change_options: bool = False,
    **params: Any,
) -> IngestResult:
    """Ingest and hold the result to its promise."""
    before = context.view()
    names, parameters = [str(i) for i in inputs], IngestParams(source, **params)
    result = run_ingest(context, names, parameters, dry_run=dry_run, change_options=change_options)
    parts = (
        result.num_added,
        result.num_unchanged,
        result.num_superseded,
        result.num_duplicate,
        result.num_held_out,
        result.num_rejected,
    )
    assert result.num_read == sum(parts)
    assert result.num_rejected == sum(result.num_rejects_by_reason.values())
    view = context.view()
    new_shards = view.shards.num_documents[len(before.shards) :]
    held_out = len(held_out_documents(context, deleted_too=True)) - len(
        held_out_documents(context, before.snapshot.number, deleted_too=True)
    )
    if not dry_run:
        assert int(new_shards.sum()) + held_out == result.num_added + result.num_superseded + result.num_held_out
    return result


def documents(context: Context, as_of: int | None = None) -> dict[tuple[str, str], str]:
    """(source, id) -> text of all live documents."""
    return dict(_documents(context.view(as_of).chunks))


def held_out_documents(
    context: Context, as_of: int | None = None, *, deleted_too: bool = False
) -> list[tuple[tuple[str, str], str]]:
    """((source, id), text) of the held-out documents, in the order of their rows."""
    view = context.view(as_of)
    if view.snapshot.entry(QueriesEntry, HELD_OUT_SET) is None:
        return []
    return _documents(view.query_set(HELD_OUT_SET), deleted_too=deleted_too)


def _documents(chunks: ChunkSet, *, deleted_too: bool = False) -> list[tuple[tuple[str, str], str]]:
    pairs = []
    for record in chunks.ranges:
        file = chunks.file("chunks", record.first_chunk, record.num_chunks)
        texts = read_table(chunks.files.open(file), ["text"]).column("text").to_pylist()
        is_live = chunks.live_mask(record.first_chunk, record.num_chunks)
        for row in chunks.documents_table(record).to_pylist():
            rows = slice(row["first_row"], row["first_row"] + row["num_chunks"])
            assert is_live[rows].all() or not is_live[rows].any(), "a document lives or goes whole"
            if deleted_too or is_live[rows].any():
                pairs.append(((row["source"], row["doc_id"]), "".join(texts[rows])))
    return pairs
