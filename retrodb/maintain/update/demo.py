"""The demo: run every stage once, on text that every Python installation contains.

The documents are the documentation of the standard library. Embedding all of it with MiniLM would take too long, so the demo
takes one module or topic in four: about 6,000 chunks. Some modules are held out as a test set. `os.path` and `ntpath` are among
them, and `posixpath` is not, so that the leak scan has a leak to find.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import orjson

from retrodb.config import DedupParams, IndexParams, IngestParams, InitParams, NeighboursParams
from retrodb.corpus.readers.jsonl import read_json_objects
from retrodb.corpus.stdlib_docs import is_held_out, stdlib_documents
from retrodb.corpus.streams import open_input
from retrodb.corpus.train_tokenizer import train_byte_bpe
from retrodb.errors import MismatchError
from retrodb.export.export import run_export
from retrodb.export.place import export_place
from retrodb.format.json_codec import JsonObject
from retrodb.format.scores import Measure
from retrodb.stages.context import Context
from retrodb.stages.dedup.command import run_dedup
from retrodb.stages.embed.command import run_embed
from retrodb.stages.embed.space_encoder import EncoderHardware
from retrodb.stages.index.command import run_index
from retrodb.stages.ingest.command import run_ingest
from retrodb.stages.init import run_init
from retrodb.stages.neighbours.command import run_neighbours
from retrodb.stages.queries.command import run_add_queries
from retrodb.store.digest import digest_bytes
from retrodb.store.snapshots import snapshot_numbers
from retrodb.store.whole_file import write_whole
from retrodb.view.neighbour_table import NeighbourTable
from retrodb.view.view import SELF, View

if TYPE_CHECKING:
    from retrodb.format.arrays import Float32Array, Int64Array

VOCAB_SIZE = 16_000
TEST_SET = "test"
"""Name of the held-out modules, as a test set and as a query set."""

_ALWAYS = "posixpath"
_NUM_EXAMPLES = 3


@dataclass(frozen=True)
class DemoStage:
    """One stage of the demo that ended."""

    stage: str
    elapsed_s: float
    counts: JsonObject  # what it did


@dataclass(frozen=True)
class DemoNeighbour:
    """A neighbour of an example."""

    doc_id: str
    score: float  # how near it is, in the measure below
    measure: Measure  # as in search
    text: str
    continuation: str


@dataclass(frozen=True)
class DemoExample:
    """A held-out chunk with its neighbours in the database."""

    doc_id: str
    text: str
    neighbours: tuple[DemoNeighbour, ...]


@dataclass(frozen=True)
class DemoResult:
    """What the demo built."""

    database: str
    num_documents: int  # live
    num_chunks: int  # live
    num_tokens: int
    size_bytes: int  # of the database's live files
    elapsed_s: float
    stages: tuple[DemoStage, ...]
    examples: tuple[DemoExample, ...]


@dataclass(frozen=True)
class _Demo:
    context: Context
    folder: Path  # of the files that the demo reads and exports; inside the database
    encoder: str
    limit: int | None
    validate: Callable[[], JsonObject]

    @property
    def corpus(self) -> Path:
        return self.folder / "corpus.jsonl"

    @property
    def test(self) -> Path:
        return self.folder / "test.jsonl"

    @property
    def tokenizer(self) -> Path:
        return self.folder / "tokenizer.json"


def run_demo(
    context: Context,
    folder: Path,
    *,
    encoder: str = InitParams.encoder,
    limit: int | None = None,
    validate: Callable[[], JsonObject],
    report: Callable[[DemoStage], None] | None = None,
) -> DemoResult:
    """Build the demo's database in `folder`, or continue one that was interrupted.

    Args:
        context: of the database at `folder`.
        encoder: of the default space.
        limit: largest number of documents in the database, and in the test set.
        validate: trains and compares the language models, and gives its findings.
        report: called with every stage when it ends.

    Raises:
        MismatchError: another database exists at `folder`.
    """
    demo = _Demo(context, folder / "demo", encoder, limit, validate)
    stages: list[DemoStage] = []
    for name, run in _STAGES.items():
        started = time.monotonic()
        counts = run(demo)
        stages.append(DemoStage(name, time.monotonic() - started, counts))
        if report:
            report(stages[-1])
    return _result(context.view(), tuple(stages))


def _documents(demo: _Demo) -> JsonObject:
    demo.folder.mkdir(parents=True, exist_ok=True)
    documents = list(stdlib_documents())
    held_out = [(doc_id, text) for doc_id, text in documents if is_held_out(doc_id)][: demo.limit]
    kept = [(doc_id, text) for doc_id, text in documents if _is_in_slice(doc_id) and not is_held_out(doc_id)]
    for path, chosen in ((demo.corpus, kept[: demo.limit]), (demo.test, held_out)):
        lines = (orjson.dumps({"id": doc_id, "text": text}) + b"\n" for doc_id, text in chosen)
        write_whole(path, b"".join(lines))
    return {"documents": len(kept[: demo.limit]), "held_out": len(held_out)}


def _tokenizer(demo: _Demo) -> JsonObject:
    with open_input(demo.corpus) as stream:
        texts = [str(record["text"]) for _, record in read_json_objects(stream, str(demo.corpus))]
    tokenizer = train_byte_bpe(texts, VOCAB_SIZE)
    write_whole(demo.tokenizer, tokenizer.to_bytes())
    return {"vocabulary": tokenizer.vocab_size, "characters": sum(map(len, texts))}


def _init(demo: _Demo) -> JsonObject:
    if not snapshot_numbers(demo.context.storage):
        run_init(
            demo.context,
            InitParams(tokenizer=str(demo.tokenizer), encoder=demo.encoder),
            written=demo.context.storage.list("demo"),
        )
    settings = demo.context.settings()
    if settings.tokenizer_sha256 != digest_bytes(demo.tokenizer.read_bytes()).sha256.hex():
        raise MismatchError(
            "this database was not built by the demo, or by the demo of another Python version",
            where=demo.context.storage.url,
            remedy="Give another folder.",
        )
    return {"chunk_tokens": settings.chunk_tokens}


def _ingest(demo: _Demo) -> JsonObject:
    result = run_ingest(demo.context, [str(demo.corpus)], IngestParams(source="python"))
    return {"documents": result.num_added, "chunks": result.num_chunks, "tokens": result.num_tokens}


def _dedup(demo: _Demo) -> JsonObject:
    [result] = run_dedup(demo.context, [demo.test], DedupParams(), name=TEST_SET)
    return {
        "removed_documents": result.num_removed_documents,
        "contained_test_items": result.num_contained_items,
        "of_test_items": result.num_items,
    }


def _queries(demo: _Demo) -> JsonObject:
    result = run_add_queries(demo.context, TEST_SET, [demo.test])
    return {"documents": result.num_documents, "chunks": result.num_rows}


def _embed(demo: _Demo) -> JsonObject:
    result = run_embed(demo.context, {}, EncoderHardware())
    return {"chunks": result.num_chunks, "query_rows": result.num_query_rows, "encoder": result.encoder}


def _index(demo: _Demo) -> JsonObject:
    result = run_index(demo.context, IndexParams())
    return {"vectors": result.num_vectors, "factory": result.factory}


def _neighbours(demo: _Demo) -> JsonObject:
    tables = [run_neighbours(demo.context, NeighboursParams(), queries=name) for name in (SELF, TEST_SET)]
    return {f"rows_of_{table.table}": table.num_rows for table in tables}


def _export(demo: _Demo) -> JsonObject:
    result = run_export(demo.context, export_place(demo.folder / "export"), to="parquet")
    return {"rows": result.num_rows, "size_bytes": result.size_bytes}


_STAGES: dict[str, Callable[[_Demo], JsonObject]] = {
    "documents": _documents,
    "tokenizer": _tokenizer,
    "init": _init,
    "ingest": _ingest,
    "dedup": _dedup,
    "queries": _queries,
    "embed": _embed,
    "index": _index,
    "neighbours": _neighbours,
    "validate": lambda demo: demo.validate(),
    "export": _export,
}


def _is_in_slice(doc_id: str) -> bool:
    """One module or topic in four, by a hash of its name."""
    top = doc_id if doc_id.startswith("topics.") else doc_id.partition(".")[0]
    return top == _ALWAYS or hashlib.sha256(top.encode()).digest()[1] % 4 == 0


def _result(view: View, stages: tuple[DemoStage, ...]) -> DemoResult:
    from retrodb.maintain.stats import read_stats

    stats = read_stats(view)
    return DemoResult(
        database=stats.database,
        num_documents=stats.num_live_documents,
        num_chunks=stats.num_live_chunks,
        num_tokens=stats.num_tokens,
        size_bytes=stats.size_bytes,
        elapsed_s=sum(stage.elapsed_s for stage in stages),
        stages=stages,
        examples=tuple(_examples(view)),
    )


def _examples(view: View) -> Iterator[DemoExample]:
    """Rows of the test set's table, at equal distances."""
    table, queries = NeighbourTable(view, TEST_SET), view.query_set(TEST_SET)
    rows = table.rows()
    chosen = rows[np.linspace(0, len(rows) - 1, _NUM_EXAMPLES + 2).astype(np.int64)[1:-1]]
    ids, scores = table.read_scores(chosen)
    for row, text, neighbour_ids, row_scores in zip(chosen, queries.texts(chosen), ids, scores, strict=True):
        [document] = queries.documents(np.array([row]))
        is_neighbour = neighbour_ids >= 0
        neighbours = _neighbours_of(view, neighbour_ids[is_neighbour], row_scores[is_neighbour], table.measure)
        yield DemoExample(document["doc_id"] if document else "", text, tuple(neighbours))


def _neighbours_of(view: View, ids: Int64Array, scores: Float32Array, measure: Measure) -> Iterator[DemoNeighbour]:
    texts, continuations = view.chunks.texts(ids), view.chunks.texts(view.chunks.continuation(ids))
    for document, score, text, continuation in zip(
        view.chunks.documents(ids), scores.tolist(), texts, continuations, strict=True
    ):
        yield DemoNeighbour(document["doc_id"] if document else "", score, measure, text, continuation)
