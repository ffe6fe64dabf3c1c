"""The rate of every stage on this machine, from building a small database of a sample."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import orjson

from retrodb.bench.machine import environment, gemm_gflops, timed
from retrodb.bench.rates import UNITS, keep_rates
from retrodb.config import (
    DedupParams,
    EmbedParams,
    IndexParams,
    IngestParams,
    InitParams,
    NeighboursParams,
)
from retrodb.corpus.stdlib_docs import stdlib_documents
from retrodb.errors import MissingStep, UsageError
from retrodb.export.export import run_export
from retrodb.export.place import export_place
from retrodb.format.entries import IndexEntry, SpaceEntry
from retrodb.format.kinds import path_of
from retrodb.stages.context import Context
from retrodb.stages.dedup.command import run_dedup
from retrodb.stages.embed.command import run_embed
from retrodb.stages.embed.space_encoder import EncoderHardware
from retrodb.stages.index.command import run_index
from retrodb.stages.ingest.command import run_ingest
from retrodb.stages.init import run_init
from retrodb.stages.neighbours.command import run_neighbours
from retrodb.store.open_storage import open_storage
from retrodb.view.document_blocks import document_texts
from retrodb.view.view import View

CHUNKS = 4_000  # of the sample
_VECTORS_PER_LIST = 64  # of the sample's index
_TEST_ITEMS = 200
_CHARS_PER_CHUNK = 256  # of English text, about


@dataclass(frozen=True)
class StageRate:
    """The rate of one stage on one core."""

    stage: str
    rate: float  # units per second
    unit: str
    amount: int  # units in the sample
    elapsed_s: float


@dataclass(frozen=True)
class ThroughputResult:
    """The measured rates, and where they are stored."""

    database: str
    sample_source: str  # where the texts come from
    encoder: str
    num_chunks: int  # of the sample
    stages: tuple[StageRate, ...]
    rates_file: str  # where the rates are stored
    gemm_before_gflops: float
    gemm_after_gflops: float
    environment: dict[str, str]


def run_bench_throughput(
    context: Context, *, folder: Path | None = None, chunks: int = CHUNKS, device: str = "auto"
) -> ThroughputResult:
    """Measure every stage with the tokenizer and default encoder of a database, and store the rates for planning.

    Half of the sample is built first without timing, so that no rate includes what is compiled, loaded or trained only once.

    Args:
        folder: where the temporary database is created; None takes the system's folder for temporary files.
        chunks: approximate size of the sample.
    """
    if chunks < 2 * _VECTORS_PER_LIST:
        raise UsageError(f"a sample of {chunks} chunks", remedy=f"Give at least {2 * _VECTORS_PER_LIST}.")
    view = context.view()
    params = _encoder(view)
    before = gemm_gflops()
    sample_source, documents = _sample(view, 2 * chunks)
    with TemporaryDirectory(dir=folder, prefix="retrodb-bench-") as temporary:
        pipeline = _Pipeline(Path(temporary), context, view, params, device)
        half = len(documents) // 2
        pipeline.run("first", documents[:half])
        with context.progress.stage("bench throughput", len(UNITS), "") as bar:
            stages = tuple(pipeline.run("second", documents[half:], lambda: bar.advance(1)))
        fingerprint = pipeline.context.view().snapshot.existing(SpaceEntry, "default").fingerprint
    rates_file = keep_rates(fingerprint, {stage.stage: stage.rate for stage in stages})
    return ThroughputResult(
        database=view.storage.url,
        sample_source=sample_source,
        encoder=params.encoder,
        num_chunks=next(stage.amount for stage in stages if stage.stage == "embed"),
        stages=stages,
        rates_file=str(rates_file),
        gemm_before_gflops=before,
        gemm_after_gflops=gemm_gflops(),
        environment=environment(1),
    )


def _encoder(view: View) -> EmbedParams:
    """The parameters of the default space's encoder, or of the one that it will get."""
    params = view.snapshot.embed_params(view.snapshot.default_space)
    if params is None:
        raise MissingStep("the database has no encoder", remedy="Run 'retrodb embed --encoder NAME' first.")
    return params


def _sample(view: View, chunks: int) -> tuple[str, list[str]]:
    """Name and texts of a sample of about this many chunks: random live documents, or the standard library's documentation."""
    random = np.random.default_rng(0)
    firsts = [view.chunks.document_ids(np.flatnonzero(view.chunks.live_mask(r.first_chunk, r.num_chunks)) + r.first_chunk)
              for r in view.chunks.ranges]  # fmt: skip
    ids, sizes = np.unique(np.concatenate([np.empty(0, np.int64), *firsts]), return_counts=True)
    if sizes.sum() < chunks:
        texts = [text for _, text in stdlib_documents()]
        chars = np.cumsum([len(text) for text in texts])
        return "documentation of the standard library", texts[: int((chars < chunks * _CHARS_PER_CHUNK).sum()) + 1]
    order = random.permutation(len(ids))
    chosen = order[: int((np.cumsum(sizes[order]) < chunks).sum()) + 1]
    return "the database's own documents", document_texts(view.chunks, np.sort(ids[chosen])).to_pylist()


class _Pipeline:
    """The stages, run one after the other on a temporary database."""

    def __init__(self, folder: Path, outer: Context, view: View, params: EmbedParams, device: str) -> None:
        self._folder, self._params, self._device = folder, params, device
        self.context = Context(open_storage(str(folder / "db")))
        tokenizer = str(outer.storage.local(path_of("tokenizer")))
        settings = view.settings
        run_init(
            self.context,
            InitParams(tokenizer, settings.chunk_tokens, settings.min_key_tokens, params.encoder),
        )

    def run(self, name: str, texts: list[str], advance: Callable[[], None] = lambda: None) -> list[StageRate]:
        """Build the texts through all stages, and time each."""
        source = self._write(f"{name}.jsonl", ({"id": f"{name}{i}", "text": text} for i, text in enumerate(texts)))
        # The words in reverse order: texts as long as the documents, and equal to none.
        items = ({"id": str(i), "text": " ".join(reversed(text.split()))} for i, text in enumerate(texts[:_TEST_ITEMS]))
        testset = self._write(f"{name}-test.jsonl", items)
        size, context = sum(len(text.encode()) for text in texts), self.context
        rates = []

        def rate(stage: str, amount: int, elapsed_s: float) -> None:
            rates.append(StageRate(stage, amount / max(elapsed_s, 1e-9), UNITS[stage], amount, elapsed_s))
            advance()

        ingest = IngestParams(name, max_reject_rate=1.0)
        _, elapsed_s = timed(lambda: run_ingest(context, [str(source)], ingest))
        rate("ingest", size, elapsed_s)
        scanned, elapsed_s = timed(lambda: run_dedup(context, [testset], DedupParams(), name=name))
        fraction = sum(result.num_documents for result in scanned) / max(1, len(texts))
        rate("dedup", round(size * fraction), elapsed_s)
        run_dedup(context, [], DedupParams())  # against the earlier test set, too
        options = {} if context.view().snapshot.entry(SpaceEntry, "default") else _given(self._params)
        embedded, elapsed_s = timed(lambda: run_embed(context, options, EncoderHardware(self._device)))
        rate("embed", embedded.num_chunks - embedded.num_reused, elapsed_s)
        factory = IndexParams(factory=f"IVF{max(1, embedded.num_chunks // _VECTORS_PER_LIST)},SQ8")
        is_new = context.view().snapshot.entry(IndexEntry, "default") is None
        indexed, elapsed_s = timed(lambda: run_index(context, factory if is_new else IndexParams()))
        rate("index", indexed.num_vectors, elapsed_s)
        joined, elapsed_s = timed(lambda: run_neighbours(context, NeighboursParams(), table=name))
        rate("neighbours", joined.num_rows, elapsed_s)
        exported, elapsed_s = timed(lambda: run_export(context, export_place(self._folder / f"{name}-out"), table=name))
        rate("export", exported.num_rows, elapsed_s)
        return rates

    def _write(self, name: str, records: Iterator[dict[str, str]]) -> Path:
        path = self._folder / name
        path.write_bytes(b"".join(orjson.dumps(record) + b"\n" for record in records))
        return path


def _given(params: EmbedParams) -> dict[str, object]:
    return {name: value for name, value in vars(params).items() if value is not None}
