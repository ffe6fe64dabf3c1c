"""What an update would do, stage by stage: documents, chunks, disk, and time as far as rates are known.

Documents are counted, by reading the input as an ingest would. Chunks follow from a sample of it. Times are those of the
rates that this machine has shown to `bench throughput` or to earlier updates; reading and embedding are else measured on the
sample.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from retrodb.ann.part import LISTS_KEPT
from retrodb.bench.rates import keep_rates, read_rates
from retrodb.config import EmbedParams
from retrodb.corpus.input_files import expand_inputs
from retrodb.corpus.lm_tokenizer import Tokenizer
from retrodb.errors import MissingStep, RetroDBError
from retrodb.format.entries import DuplicatesEntry, QueriesEntry, SpaceEntry, TableEntry, TestsetEntry
from retrodb.maintain.update.command import DONE, UpdateStep, pending_vectors, spaces_of
from retrodb.maintain.update.recipe import Recipe, SourceRecipe, TableRecipe
from retrodb.maintain.update.sample import InputSample, sample_inputs
from retrodb.stages.embed.space_encoder import EncoderHardware, load_encoder
from retrodb.stages.ingest.plan import IngestResult
from retrodb.stages.ingest.tokenize import load_tokenizer
from retrodb.view.view import SELF, View

_ENCODED = 64  # chunks of the sample that measure an encoder: seconds of a core with a large model
# Disk, measured on English Wikipedia: zstd-compressed text with its token lists, and what each chunk and document costs besides.
_BYTES_PER_TEXT_BYTE, _BYTES_PER_CHUNK, _BYTES_PER_DOCUMENT = 0.8, 16 + 64 * 2, 90
_BYTES_PER_NEIGHBOUR = 12


@dataclass(frozen=True)
class StageEstimate:
    """What one stage would do."""

    stage: str
    name: str
    documents: int | None = None
    chunks: int | None = None
    size_bytes: int | None = None  # that it adds to the disk
    elapsed_s: float | None = None  # None: no rate is known
    note: str | None = None  # why it cannot be told


@dataclass(frozen=True)
class UpdatePlan:
    """What an update would do."""

    database: str
    snapshot: int
    documents: int  # new and changed ones
    chunks: int  # of these
    removed: int  # documents that go, as far as the sources tell
    stages: tuple[StageEstimate, ...]


@dataclass(frozen=True)
class Work:
    """New text."""

    documents: int = 0
    chunks: int = 0
    text_bytes: int = 0
    texts: tuple[str, ...] = ()  # of some chunks

    def and_that_of(self, sample: InputSample) -> Work:
        """Both together."""
        return Work(
            self.documents + sample.documents,
            self.chunks + sample.chunks,
            self.text_bytes + sample.text_bytes,
            self.texts + sample.texts,
        )


def plan_update(
    view: View, recipe: Recipe, workers: int, plan_ingest: Callable[[SourceRecipe], IngestResult]
) -> UpdatePlan:
    """Plan an update.

    Args:
        plan_ingest: a dry run of an ingest. What it read is kept, so that the update itself continues from there.
    """
    tokenizer = load_tokenizer(view.storage.url, view.settings.tokenizer_sha256)
    work, removed = Work(), 0
    stages: list[StageEstimate] = []
    for name, source in recipe.sources.items():
        try:
            planned = plan_ingest(source)
            documents = planned.num_added + planned.num_superseded
            removed += planned.num_removed + planned.num_superseded
            if not documents and planned.num_removed:
                stages.append(StageEstimate("ingest", name, 0, 0, 0))
            elif documents:
                sample = sample_source(source, tokenizer, view.settings.chunk_tokens).scaled(documents)
                work = work.and_that_of(sample)
                stages.append(ingest_estimate(name, sample, workers))
        except RetroDBError as error:
            stages.append(StageEstimate("ingest", name, note=f"fails: {error}"))
    stages += stage_estimates(recipe, work, state_of(view, recipe), workers)
    return UpdatePlan(view.storage.url, view.snapshot.number, work.documents, work.chunks, removed, tuple(stages))


def sample_source(source: SourceRecipe, tokenizer: Tokenizer, chunk_tokens: int) -> InputSample:
    """A sample of a source's input."""
    files = expand_inputs(source.inputs, source.files_from, source.format)
    return sample_inputs(files, source, tokenizer, chunk_tokens)


def ingest_estimate(name: str, sample: InputSample, workers: int) -> StageEstimate:
    """What reading an input would take, at the machine's rate or that of its sample."""
    size = sample.text_bytes * _BYTES_PER_TEXT_BYTE
    size += sample.chunks * _BYTES_PER_CHUNK + sample.documents * _BYTES_PER_DOCUMENT
    rate = read_rates().get("ingest")
    elapsed_s = (sample.text_bytes / rate if rate else sample.read_s) / workers
    return StageEstimate("ingest", name, sample.documents, sample.chunks, round(size), elapsed_s)


@dataclass(frozen=True)
class State:
    """What a database has already, as far as the later stages ask."""

    spaces: Mapping[str, EmbedParams]  # that will be filled
    pending: Mapping[str, int]  # rows without a vector, by space
    testsets: frozenset[str] = frozenset()
    documents: int = 0
    has_near_duplicates: bool = False
    tables: frozenset[str] = frozenset()
    rows: Mapping[str, int] = field(default_factory=dict)  # of query sets, the database's own not among them


def state_of(view: View, recipe: Recipe) -> State:
    """The state of a snapshot."""
    snapshot = view.snapshot
    spaces = {name: _embed_params(view, recipe, name) for name in spaces_of(view, recipe)}
    query_sets = {name: view.query_set(name) for name in snapshot.names(QueriesEntry)}
    return State(
        spaces=spaces,
        pending={name: pending_vectors(view, name) for name in spaces},
        testsets=frozenset(snapshot.names(TestsetEntry)),
        documents=int(view.shards.num_documents.sum()),
        has_near_duplicates=snapshot.entry(DuplicatesEntry, "near") is not None,
        tables=frozenset(snapshot.names(TableEntry)),
        rows={name: chunks.end for name, chunks in query_sets.items()},
    )


def _embed_params(view: View, recipe: Recipe, space: str) -> EmbedParams:
    if space in recipe.spaces:
        return recipe.spaces[space]
    params = view.snapshot.embed_params(space)
    if params is None:
        raise MissingStep(f"space '{space}' is new and no encoder is named", remedy="Name one in the recipe.")
    return params


def stage_estimates(recipe: Recipe, work: Work, state: State, workers: int) -> Iterator[StageEstimate]:
    """What the stages after ingest would do with new text and with what waits already."""
    rates = read_rates()

    def seconds(stage: str, amount: int) -> float | None:
        return amount / (rates[stage] * workers) if stage in rates else None

    for name in recipe.taggers if work.documents else ():
        yield StageEstimate("tag", name, work.documents, work.chunks)
    for rule in recipe.filters if work.documents else ():
        yield StageEstimate("filter", rule.where, work.documents, work.chunks)
    for name in {**recipe.testsets, **dict.fromkeys(sorted(state.testsets))}:
        documents = work.documents + (0 if name in state.testsets else state.documents)
        if documents:
            elapsed_s = seconds("dedup", work.text_bytes) if documents == work.documents else None
            yield StageEstimate("dedup", name, documents, elapsed_s=elapsed_s)
    if work.documents and (recipe.near_duplicates or state.has_near_duplicates):
        yield StageEstimate("near-duplicates", "", work.documents, work.chunks)
    chunks = work.chunks + max(state.pending.values(), default=0)
    for name, params in state.spaces.items():
        if own := work.chunks + state.pending[name]:
            yield from _space(name, params, recipe, work, own, workers)
    for name, table in {**dict.fromkeys(sorted(state.tables)), **recipe.neighbours}.items():
        rows = state.rows.get(table.queries, 0) if table and table.queries != SELF else chunks
        width = table.k + table.spare_neighbours if table else TableRecipe.k + TableRecipe.spare_neighbours
        if chunks and rows:
            size = rows * width * _BYTES_PER_NEIGHBOUR
            yield StageEstimate("neighbours", name, None, rows, size, seconds("neighbours", rows))
    for export in recipe.exports if chunks else ():
        yield StageEstimate("export", export.out, None, chunks, elapsed_s=seconds("export", chunks))


def _space(
    name: str, params: EmbedParams, recipe: Recipe, work: Work, chunks: int, workers: int
) -> Iterator[StageEstimate]:
    """Embedding, at the encoder's rate or that of chunks of the sample, and indexing."""
    encoder = load_encoder(params, EncoderHardware(recipe.embed.device, recipe.embed.dtype, recipe.embed.batch_tokens))
    rates, dim = read_rates(encoder.identity.fingerprint()), encoder.identity.dimension
    embed_s, index_s = (chunks / (rates[stage] * workers) if stage in rates else None for stage in ("embed", "index"))
    texts = list(work.texts[:: max(1, len(work.texts) // _ENCODED)])[:_ENCODED]
    if texts and embed_s is None:
        encoder.encode_passages(texts[:8])  # the first batch is slow
        started = time.perf_counter()
        encoder.encode_passages(texts)
        embed_s = (time.perf_counter() - started) / len(texts) * chunks
    yield StageEstimate("embed", name, None, chunks, chunks * dim * 2, embed_s)
    yield StageEstimate("index", name, None, chunks, chunks * (2 * dim + 4 * LISTS_KEPT), index_s)


def learn_rates(view: View, steps: Sequence[UpdateStep], workers: int) -> None:
    """Keep the rates of an update's long steps: for its next one they say more than a benchmark's or an earlier one's."""
    space = view.snapshot.entry(SpaceEntry, view.snapshot.default_space)
    if space is None:
        return
    known, seen = read_rates(space.fingerprint), dict[str, float]()
    for step in steps:
        if step.outcome == DONE and step.elapsed_s >= _LONG_S and (amount := _amount(step)):
            seen[step.stage] = amount / (step.elapsed_s * workers)
    if seen:
        with suppress(OSError):  # a cache that cannot be written costs an estimate only
            keep_rates(space.fingerprint, {**known, **seen})


_LONG_S = 10.0  # a shorter step is mostly the start of processes and libraries


def _amount(step: UpdateStep) -> int:
    """What a step did, in the units of rates; 0 where its counts do not tell."""
    counts = step.counts
    if step.stage == "embed":
        return counts.get("chunks", 0) - counts.get("reused", 0) - counts.get("repeated", 0)
    if step.stage == "neighbours":  # a repair's rows are those of the whole table
        return counts.get("computed", counts.get("rows", 0))
    return counts.get("vectors", 0) if step.stage == "index" else 0
