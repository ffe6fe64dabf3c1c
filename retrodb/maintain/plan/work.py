"""What each stage has to do: amounts for its rates, bytes, tasks, and the memory of a task.

Whatever a stage chooses is chosen here by the function that the stage itself calls, so that plan and stage cannot differ.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from retrodb.ann.codebook import FLAT, FLAT_LISTS, MOST_PROBED, num_groups_in, num_lists_of, sample_size
from retrodb.ann.grouped_lists import PROBED_GROUPS, PROBED_POWER
from retrodb.ann.grouped_training import POINTS_PER_GROUP, REFINEMENTS, REFINING_GROUPS
from retrodb.ann.kmeans import ITERATIONS
from retrodb.ann.merge_parts import BLOCK_ROWS as MERGED_ROWS
from retrodb.ann.training import groups_to_train
from retrodb.config import NearDuplicatesParams
from retrodb.dedup.lsh import parse_bands
from retrodb.engine.task_memory import memory_of
from retrodb.format.records import ChunkRange
from retrodb.maintain.plan.figures import CorpusAverages
from retrodb.maintain.plan.join_choice import JoinChoice, scanned_products
from retrodb.maintain.plan.request import PlanRequest, shape_of
from retrodb.maintain.plan.sizes import DatabaseSize
from retrodb.stages.dedup.near_clusters import EXPANSION
from retrodb.stages.dedup.near_documents import EQUAL_BYTES, PREFIX_DOCUMENTS, power_of_two
from retrodb.stages.dedup.near_files import GROUP_CHUNKS
from retrodb.stages.dedup.near_join import ENTRY_BYTES, parts_of_bands
from retrodb.stages.index.operating_point import SAMPLE_ROWS
from retrodb.stages.index.part_task import part_bytes
from retrodb.stages.index.train_codebook import TrainingSize, rows_of_task
from retrodb.stages.ingest.read_tasks import segment_chars
from retrodb.stages.neighbours.range_join import span_groups

_EXPORTED_ARRAYS = 8
_PARAMETER_BYTES = 4 * 3  # float32 weights, as read, as loaded, and what PyTorch takes for itself


@dataclass(frozen=True)
class StageWork:
    """What a stage does."""

    stage: str
    amounts: Mapping[str, float]  # by the name of the rate
    num_tasks: int
    memory_bytes: int  # of a process that runs the largest task
    read_bytes: float
    written_bytes: float  # also of files that are deleted afterwards
    shuffled_bytes: float = 0.0  # that tasks write for each other and read again; part of what is written and read
    stored: Mapping[str, int] = field(default_factory=dict)  # kind of file -> bytes
    files_of_shard: float = 0.0
    serial: Mapping[str, float] = field(default_factory=dict)  # of the amounts, those of steps that one task does


def ingest_work(size: DatabaseSize, averages: CorpusAverages) -> StageWork:
    """Read, spool, tokenize, and write shards."""
    segment = segment_chars(size.text_bytes)
    stored = _kinds(size, averages, "chunks", "documents", "tokens", "hashes", "ids")
    return StageWork(
        "ingest",
        {"ingest": size.text_bytes},
        num_tasks=2 * size.shards,
        memory_bytes=memory_of("tokenize").of_task(segment),
        read_bytes=2 * size.text_bytes,
        written_bytes=size.text_bytes + sum(stored.values()),
        shuffled_bytes=size.text_bytes,
        stored=stored,
        files_of_shard=8,  # five kinds, and the block digests of three
    )


def dedup_work(size: DatabaseSize, averages: CorpusAverages) -> StageWork:
    """Compare all documents with one test set."""
    texts = averages.chunks_bytes_per_token * size.tokens
    memory = memory_of("leak-scan").of_task(size.shard_chunks)
    return StageWork("dedup", {"dedup": size.text_bytes}, size.shards, memory, texts, 0, files_of_shard=1)


def near_duplicates_work(size: DatabaseSize, averages: CorpusAverages) -> StageWork:
    """Hash, join and compare the documents, and cluster the pairs."""
    params = NearDuplicatesParams()
    bands = parse_bands(params.bands, params.permutations).count
    groups, prefixes = -(-size.chunks // GROUP_CHUNKS), power_of_two(size.documents, PREFIX_DOCUMENTS)
    parts = parts_of_bands(size.documents, bands)
    entries = max(size.documents * (end - first) // count for first, end, _, count in parts)
    stored = _kinds(size, averages, "bands", "duplicates")
    # Facts, contents and equal contents of documents; bands again, of shards that have documents of repeated content.
    exchanged = size.documents * (32 + 24 + 8) + stored["bands"]
    texts = averages.chunks_bytes_per_token * size.tokens
    memory = max(
        memory_of("bands").of_task(size.shard_chunks),
        memory_of("near-shingles").of_task(size.shard_chunks),
        memory_of("near-join").of_task(0, ENTRY_BYTES * entries),
        memory_of("near-equal").of_task(0, EQUAL_BYTES * (size.documents // prefixes)),
        memory_of("verify").of_task(0),
        memory_of("near-clusters").of_task(0, EXPANSION * stored.get("duplicates", 0)),
    )
    return StageWork(
        "near-duplicates",
        {"near-duplicates": size.text_bytes},
        num_tasks=2 * size.shards + 3 * groups + prefixes + len(parts) + 1,
        memory_bytes=memory,
        read_bytes=texts + stored["bands"] + exchanged,
        written_bytes=stored["bands"] + exchanged,
        shuffled_bytes=exchanged,
        stored=stored,
        files_of_shard=3,
    )


def embed_work(request: PlanRequest, size: DatabaseSize, averages: CorpusAverages) -> StageWork:
    """Compute the vectors of all chunks."""
    stored = _kinds(size, averages, "vectors")
    held = shape_of(request).parameters * _PARAMETER_BYTES
    return StageWork(
        "embed",
        {"embed": size.vectors},
        num_tasks=size.shards,
        memory_bytes=memory_of("embed").of_task(size.shard_chunks, held),
        # Vectors are first written in windows of equal lengths, which a killed task keeps, and gathered from these.
        read_bytes=averages.chunks_bytes_per_token * size.tokens + stored["vectors"],
        written_bytes=2 * stored["vectors"],
        stored=stored,
        files_of_shard=2,
    )


def index_work(size: DatabaseSize, averages: CorpusAverages) -> StageWork:
    """Train the codebook, build a part for each shard, and merge parts."""
    stored = _kinds(size, averages, "parts", "codebooks")
    factory, sample = size.factory, min(size.vectors, sample_size(size.factory))
    training = TrainingSize(factory, sample, size.dimension)
    groups = groups_to_train(factory) if factory != FLAT else 0
    sample_bytes = 2 * size.dimension * sample
    # The sample is drawn and read; with groups, each pass sorts it as float32 and reads it again.
    exchanged = sample_bytes + (1 + REFINEMENTS) * 2 * sample_bytes if groups else sample_bytes
    merged = size.merged_rows * size.part_row_bytes
    steps = -(-sample // rows_of_task(sample)) * 2 * (1 + REFINEMENTS) if groups else 1
    trains = memory_of("index-train").of_task(0, training.step_bytes) if factory != FLAT else 0
    serial = {"products": _serial_products(factory, size.dimension, sample)}
    return StageWork(
        "index",
        {
            "products": training_products(factory, size.dimension, sample)
            + assignment_products(factory, size.dimension, size.vectors, 1),
            "training": training_components(factory, size.dimension, sample),
            "index": float(size.vectors) * size.dimension,
            "merge": merged,
        },
        num_tasks=size.shards + steps + (len(size.part_rows) if size.merged_rows else 0),
        memory_bytes=max(
            trains,
            memory_of("index").of_task(size.shard_chunks, part_bytes(size.dimension, size.num_lists)),
            memory_of("index-lists").of_task(0),
            memory_of("merge").of_task(max(size.part_rows), 4 * (4 + 1) * MERGED_ROWS * size.dimension),
        ),
        read_bytes=stored["parts"] + 2 * size.dimension * size.vectors + exchanged + merged,
        written_bytes=stored["parts"] + exchanged + merged,
        shuffled_bytes=exchanged,
        stored=stored,
        files_of_shard=17 * len(size.part_rows) / size.shards,  # 9 of a part, and 8 files of block digests
        serial=serial,
    )


def training_products(factory: str, dimension: int, sample: int) -> float:
    """Products of a sample's vectors with centroids, a multiplication and an addition for each dimension."""
    if factory == FLAT:
        return 0.0
    num_lists, groups = num_lists_of(factory), groups_to_train(factory)
    if not groups:
        return float(sample) * num_lists * ITERATIONS * dimension
    in_group = num_lists / groups
    per_vector = groups + in_group * ITERATIONS + REFINEMENTS * (groups + REFINING_GROUPS * in_group)
    return sample * per_vector * dimension + _serial_products(factory, dimension, sample)


def training_components(factory: str, dimension: int, sample: int) -> float:
    """Components of vectors that a training handles: the sample, or with groups the sample in each pass, sorted and in files."""
    if factory == FLAT:
        return 0.0
    return float(sample) * dimension * (1 + REFINEMENTS if groups_to_train(factory) else 1)


def _serial_products(factory: str, dimension: int, sample: int) -> float:
    """Of the training, what one task does: the groups, or all of few lists."""
    groups = groups_to_train(factory) if factory != FLAT else 0
    if not groups:
        return training_products(factory, dimension, sample)
    return min(sample, POINTS_PER_GROUP * groups) * float(groups) * ITERATIONS * dimension


def assignment_products(factory: str, dimension: int, vectors: int, count: int) -> float:
    """Products to find so many nearest lists of vectors: with all lists, or through groups, as `Codebook.nearest_lists` does."""
    num_lists, groups = num_lists_of(factory), num_groups_in(factory)
    if num_lists == 1:
        return 0.0
    compared = float(num_lists)
    if num_lists > FLAT_LISTS and groups:
        probed = min(groups, math.ceil(PROBED_GROUPS * count**PROBED_POWER))
        if MOST_PROBED * probed < groups:
            compared = groups + probed * num_lists / groups
    return vectors * compared * dimension


def export_work(size: DatabaseSize, averages: CorpusAverages) -> StageWork:
    """Write the table as arrays."""
    exported = size.export_bytes(averages)
    piece = exported // (_EXPORTED_ARRAYS * size.shards) * 4  # the largest array has about half of the bytes
    tokens = averages.token_bytes * size.chunk_tokens * (size.chunks + size.vectors)
    return StageWork(
        "export",
        {"export": size.vectors},
        num_tasks=(_EXPORTED_ARRAYS + 2) * size.shards,
        memory_bytes=memory_of("export-pieces").of_task(piece),
        read_bytes=tokens + size.neighbour_bytes * size.width * size.vectors,
        written_bytes=exported,
        stored={"export": exported},
        files_of_shard=0,
    )


def neighbours_work(size: DatabaseSize, averages: CorpusAverages, join: JoinChoice) -> StageWork:
    """Choose the lists of each row, scan them, and write the table; measure recall on a sample."""
    stored = _kinds(size, averages, "neighbours", "naming")
    spans = [ChunkRange(number * size.shard_chunks, size.shard_chunks) for number in range(size.shards)]
    groups = len(span_groups(spans, join.num_ranges))
    is_split = join.num_ranges > 1
    sampled = SAMPLE_ROWS * float(size.vectors) * size.dimension
    codes = (size.dimension + 16) * size.vectors
    return StageWork(
        "neighbours",
        {
            "products": assignment_products(size.factory, size.dimension, size.vectors, max(1, join.nprobe)) + sampled,
            "scan": scanned_products(size.dimension, join.pairs, join.pieces),
            "neighbours": size.vectors,
            "exchange": size.vectors * (join.ranges_per_row - 1) if is_split else 0.0,
        },
        num_tasks=2 * size.shards + 3 * groups * join.num_ranges if is_split else groups + size.shards,
        memory_bytes=max(
            join.memory_bytes,
            memory_of("exact-scan").of_task(size.shard_chunks),
            memory_of("neighbours-point").of_task(0, 2 * 4 * size.num_lists * size.dimension),
        ),
        read_bytes=groups * (2 if is_split else 1) * codes + 2 * size.dimension * size.vectors + join.exchanged_bytes,
        written_bytes=sum(stored.values()) + join.exchanged_bytes,
        shuffled_bytes=join.exchanged_bytes,
        stored=stored,
        files_of_shard=2,
    )


def stage_works(
    request: PlanRequest, size: DatabaseSize, averages: CorpusAverages, join: JoinChoice
) -> tuple[StageWork, ...]:
    """All stages of a first build, in their order."""
    return (
        ingest_work(size, averages),
        dedup_work(size, averages),
        near_duplicates_work(size, averages),
        embed_work(request, size, averages),
        index_work(size, averages),
        neighbours_work(size, averages, join),
        export_work(size, averages),
    )


def _kinds(size: DatabaseSize, averages: CorpusAverages, *names: str) -> dict[str, int]:
    stored = size.stored_bytes(averages)
    kinds = {name: stored[name] for name in names if name in stored}
    if blocks := size.block_bytes(names, averages):
        kinds["blocks"] = blocks
    return kinds
