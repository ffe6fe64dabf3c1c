"""What an update would do, stage by stage: documents, chunks, disk space, and time where rates are known.

Documents are counted by reading the input as an ingest does. Chunks are estimated from a sample. Times are computed from the
rates that `bench throughput` or earlier updates measured on this machine. Without these, reading and embedding are measured on
the sample.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

from retrodb.bench.rates import keep_rates, read_rates
from retrodb.config import EmbedParams
from retrodb.corpus.input_files import find_files
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

_NUM_ENCODED = 64  # chunks that an encoder is measured with: some seconds with a large model
_LIST_BYTES = 4  # of a vector in an index: the number of its list
# Disk space, measured on English Wikipedia: zstd-compressed text with its token lists, and the rest per chunk and per document.
_BYTES_PER_TEXT_BYTE, _BYTES_PER_CHUNK, _BYTES_PER_DOCUMENT = 0.8, 16 + 64 * 2, 90
_BYTES_PER_NEIGHBOUR = 14  # 11 in the file of the table, and 3 in the one that says which rows name a chunk


@dataclass(frozen=True)
class StageEstimate:
    """What one stage would do."""

    stage: str
    name: str
    num_documents: int | None = None
    num_chunks: int | None = None
    size_bytes: int | None = None  # of new files
    elapsed_s: float | None = None  # None: no rate is known
    note: str | None = None  # why there is no estimate


@dataclass(frozen=True)
class UpdatePlan:
    """What an update would do."""

    database: str
    snapshot: int
    num_documents: int  # new and changed
    num_chunks: int  # of these
    num_removed_documents: int  # that the sources do not have any more, and old versions
    stages: tuple[StageEstimate, ...]


@dataclass(frozen=True)
class Work:
    """New text."""

    num_documents: int = 0
    num_chunks: int = 0
    text_bytes: int = 0
    texts: tuple[str, ...] = ()  # of some chunks

    def plus(self, sample: InputSample) -> Work:
        """This text together with that of a sampled input."""
        return Work(
            self.num_documents + sample.num_documents,
            self.num_chunks + sample.num_chunks,
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
    work, num_removed = Work(), 0
    stages: list[StageEstimate] = []
    for name, source in recipe.sources.items():
        try:
            planned = plan_ingest(source)
            num_documents = planned.num_added + planned.num_superseded
            num_removed += planned.num_removed + planned.num_superseded
            if not num_documents and planned.num_removed:
                stages.append(StageEstimate("ingest", name, 0, 0, 0))
            elif num_documents:
                sample = sample_source(source, tokenizer, view.settings.chunk_tokens).scaled(num_documents)
                work = work.plus(sample)
                stages.append(ingest_estimate(name, sample, workers))
        except RetroDBError as error:
            stages.append(StageEstimate("ingest", name, note=f"fails: {error}"))
    stages += stage_estimates(recipe, work, planning_state(view, recipe), workers)
    return UpdatePlan(
        view.storage.url, view.snapshot.number, work.num_documents, work.num_chunks, num_removed, tuple(stages)
    )


def sample_source(source: SourceRecipe, tokenizer: Tokenizer, chunk_tokens: int) -> InputSample:
    """A sample of the input of a source."""
    found = find_files(source.inputs, source.files_from, source.format, include=source.include, exclude=source.exclude)
    return replace(sample_inputs(found.files, source, tokenizer, chunk_tokens), notes=found.notes)


def ingest_estimate(name: str, sample: InputSample, workers: int) -> StageEstimate:
    """What ingesting an input would take, at the measured rate of this machine or of the sample."""
    size_bytes = sample.text_bytes * _BYTES_PER_TEXT_BYTE
    size_bytes += sample.num_chunks * _BYTES_PER_CHUNK + sample.num_documents * _BYTES_PER_DOCUMENT
    rate = read_rates().get("ingest")
    elapsed_s = (sample.text_bytes / rate if rate else sample.read_s) / workers
    return StageEstimate("ingest", name, sample.num_documents, sample.num_chunks, round(size_bytes), elapsed_s)


@dataclass(frozen=True)
class State:
    """What a database contains before an update."""

    spaces: Mapping[str, EmbedParams]  # that the update fills
    num_pending: Mapping[str, int]  # space -> rows without a vector
    testsets: frozenset[str] = frozenset()
    num_documents: int = 0
    has_near_duplicates: bool = False
    tables: frozenset[str] = frozenset()
    num_rows: Mapping[str, int] = field(default_factory=dict)  # query set, other than the database's own chunks -> rows


def planning_state(view: View, recipe: Recipe) -> State:
    """The state of a snapshot."""
    snapshot = view.snapshot
    spaces = {name: _embed_params(view, recipe, name) for name in spaces_of(view, recipe)}
    query_sets = {name: view.query_set(name) for name in snapshot.names(QueriesEntry)}
    return State(
        spaces=spaces,
        num_pending={name: pending_vectors(view, name) for name in spaces},
        testsets=frozenset(snapshot.names(TestsetEntry)),
        num_documents=int(view.shards.num_documents.sum()),
        has_near_duplicates=snapshot.entry(DuplicatesEntry, "near") is not None,
        tables=frozenset(snapshot.names(TableEntry)),
        num_rows={name: chunks.end for name, chunks in query_sets.items()},
    )


def _embed_params(view: View, recipe: Recipe, space: str) -> EmbedParams:
    if space in recipe.spaces:
        return recipe.spaces[space]
    params = view.snapshot.embed_params(space)
    if params is None:
        raise MissingStep(f"space '{space}' is new and no encoder is named", remedy="Name one in the recipe.")
    return params


def stage_estimates(recipe: Recipe, work: Work, state: State, workers: int) -> Iterator[StageEstimate]:
    """What the stages after ingest would do with new text, and with rows that wait for a vector."""
    rates = read_rates()

    def seconds(stage: str, amount: int) -> float | None:
        return amount / (rates[stage] * workers) if stage in rates else None

    for name in recipe.taggers if work.num_documents else ():
        yield StageEstimate("tag", name, work.num_documents, work.num_chunks)
    for rule in recipe.filters if work.num_documents else ():
        yield StageEstimate("filter", rule.where, work.num_documents, work.num_chunks)
    for name in {**recipe.testsets, **dict.fromkeys(sorted(state.testsets))}:
        num_documents = work.num_documents + (0 if name in state.testsets else state.num_documents)
        if num_documents:
            elapsed_s = seconds("dedup", work.text_bytes) if num_documents == work.num_documents else None
            yield StageEstimate("dedup", name, num_documents, elapsed_s=elapsed_s)
    if work.num_documents and (recipe.near_duplicates or state.has_near_duplicates):
        yield StageEstimate("near-duplicates", "", work.num_documents, work.num_chunks)
    for name, params in state.spaces.items():
        if num_chunks := work.num_chunks + state.num_pending[name]:
            yield from _space_estimates(name, params, recipe, work, num_chunks, workers)
    num_chunks = work.num_chunks + max(state.num_pending.values(), default=0)
    for name, table in {**dict.fromkeys(sorted(state.tables)), **recipe.neighbours}.items():
        num_rows = state.num_rows.get(table.queries, 0) if table and table.queries != SELF else num_chunks
        width = table.k + table.spare_neighbours if table else TableRecipe.k + TableRecipe.spare_neighbours
        if num_chunks and num_rows:
            size_bytes = num_rows * width * _BYTES_PER_NEIGHBOUR
            yield StageEstimate("neighbours", name, None, num_rows, size_bytes, seconds("neighbours", num_rows))
    for export in recipe.exports if num_chunks else ():
        yield StageEstimate("export", export.out, None, num_chunks, elapsed_s=seconds("export", num_chunks))


def _space_estimates(
    name: str, params: EmbedParams, recipe: Recipe, work: Work, num_chunks: int, workers: int
) -> Iterator[StageEstimate]:
    """Embedding, at the measured rate of the encoder or at the rate of the sample's chunks, and indexing."""
    encoder = load_encoder(params, EncoderHardware(recipe.embed.device, recipe.embed.dtype, recipe.embed.batch_tokens))
    rates, dimension = read_rates(encoder.identity.fingerprint()), encoder.identity.dimension
    embed_s, index_s = (
        num_chunks / (rates[stage] * workers) if stage in rates else None for stage in ("embed", "index")
    )
    texts = list(work.texts[:: max(1, len(work.texts) // _NUM_ENCODED)])[:_NUM_ENCODED]
    if texts and embed_s is None:
        encoder.encode_passages(texts[:8])  # the first batch is slow
        started = time.perf_counter()
        encoder.encode_passages(texts)
        embed_s = (time.perf_counter() - started) / len(texts) * num_chunks
    vector_bytes = 2 * dimension  # float16
    yield StageEstimate("embed", name, None, num_chunks, num_chunks * vector_bytes, embed_s)
    yield StageEstimate("index", name, None, num_chunks, num_chunks * (vector_bytes + _LIST_BYTES), index_s)


def learn_rates(view: View, steps: Sequence[UpdateStep], workers: int) -> None:
    """Store the rates of an update's long steps. They predict the next update better than a benchmark or older rates."""
    space = view.snapshot.entry(SpaceEntry, view.snapshot.default_space)
    if space is None:
        return
    stored, measured = read_rates(space.fingerprint), dict[str, float]()
    for step in steps:
        if step.outcome == DONE and step.elapsed_s >= _LONG_S and (amount := _amount(step)):
            measured[step.stage] = amount / (step.elapsed_s * workers)
    if measured:
        with suppress(OSError):  # without the cache, only an estimate is missing
            keep_rates(space.fingerprint, {**stored, **measured})


_LONG_S = 10.0  # a shorter step mostly starts processes and loads libraries


def _amount(step: UpdateStep) -> int:
    """The amount of work of a step in the units of rates; 0 when its counts do not give it."""
    counts = step.counts
    if step.stage == "embed":
        return counts.get("chunks", 0) - counts.get("reused", 0) - counts.get("repeated", 0)
    if step.stage == "neighbours":  # the rows of a repair are those of the whole table
        return counts.get("computed", counts.get("rows", 0))
    return counts.get("vectors", 0) if step.stage == "index" else 0
