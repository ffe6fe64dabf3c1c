"""Two spaces compared: their neighbours, recall, speed and size, and whether they help a language model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from retrodb.ann.exact import exact_topk
from retrodb.ann.exclusion import Exclusion
from retrodb.bench.eval_retrieval import RetrievalResult, run_eval_retrieval
from retrodb.bench.recall import RecallReport, TimedPoint, run_bench_recall
from retrodb.config import ValidateParams
from retrodb.errors import MissingStep, UsageError
from retrodb.format.arrays import Int64Array
from retrodb.format.entries import SpaceEntry, TableEntry
from retrodb.retro.validate import run_validate
from retrodb.stages.context import Context
from retrodb.stages.embed.spaces import list_spaces
from retrodb.stages.index.live_parts import database_keys, live_parts, open_codebook
from retrodb.view.view import SELF, View

_SAMPLE_CHUNKS = 256  # whose nearest chunks are compared: gives the agreement to about 0.02


@dataclass(frozen=True)
class SpaceMeasures:
    """The measures of one of the two spaces."""

    space: str
    encoder: str
    dimension: int
    num_chunks: int
    size_bytes: int  # vectors, codebook and parts
    bytes_per_chunk: float
    recall: float  # of the index at the timed number of lists
    nprobe: int  # this number of lists
    p50_latency_s: float  # of single warm queries at this number
    queries_per_s: float  # in one warm batch at this number
    ndcg_at_10: float | None = None  # with judged queries
    recall_at_k: float | None = None
    mrr: float | None = None
    bits_per_byte: float | None = None  # of the model with retrieval, after equal training time; with `minutes`
    bits_per_byte_without: float | None = None  # of the model trained on equally many tokens without retrieval


@dataclass(frozen=True)
class CompareResult:
    """Two spaces of one snapshot."""

    snapshot: int
    k: int
    agreement: float  # fraction of the exact k nearest chunks, of other documents, that both spaces have
    spaces: list[SpaceMeasures]


def run_compare(
    context: Context,
    first: str,
    second: str,
    *,
    k: int = 10,
    queries: Path | None = None,
    qrels: Path | None = None,
    minutes: float | None = None,
    seed: int = 0,
) -> CompareResult:
    """Measure two spaces with the same queries.

    Args:
        queries, qrels: judged queries, as for `eval-retrieval`; without them retrieval quality is not measured.
        minutes: to train a small RETRO model on the neighbour tables of each space; None trains none.

    Raises:
        UsageError: for a space that does not exist, or queries without judgements.
        MissingStep: when a space is not indexed, or its tables are missing.
    """
    if (queries is None) != (qrels is None):
        raise UsageError("judged queries need a file of queries and one of judgements", remedy="Give both or neither.")
    if first == second:
        raise UsageError(f"space '{first}' twice", remedy="Name two spaces.")
    view = context.view()
    for space in (first, second):
        open_codebook(view, space)
    measured = [_measure(context, view, space, k, queries, qrels, minutes, seed) for space in (first, second)]
    return CompareResult(
        view.snapshot.number, k, round(neighbour_agreement(view, (first, second), k, seed), 4), measured
    )


def neighbour_agreement(view: View, spaces: Sequence[str], k: int, seed: int) -> float:
    """The fraction of a sample's exact k nearest chunks, own document excluded, that two spaces have in common."""
    parts = {space: live_parts(view, space, kinds=("document",)) for space in spaces}
    ids = [np.concatenate([part.ids_N for part in parts[space]]) for space in spaces]
    common = np.intersect1d(ids[0], ids[1])
    common = common[view.chunks.is_live(common)]
    sample = np.sort(np.random.default_rng(seed).permutation(common)[:_SAMPLE_CHUNKS])
    exclusion = Exclusion.of(len(sample), document=database_keys(view, "document", sample))
    nearest: list[Int64Array] = []  # (sample, k) of each space
    for space in spaces:
        vectors = view.vectors(space, sample)
        metric = view.snapshot.existing(SpaceEntry, space).metric
        blocks = (block for part in parts[space] for block in part.blocks())
        nearest.append(exact_topk(vectors, blocks, k, metric, exclusion)[0])
    is_chunk = nearest[0] >= 0
    is_common = (nearest[0][:, :, None] == nearest[1][:, None, :]).any(axis=2)
    return float(is_common[is_chunk].mean()) if is_chunk.any() else 1.0


def _measure(
    context: Context,
    view: View,
    space: str,
    k: int,
    queries: Path | None,
    qrels: Path | None,
    minutes: float | None,
    seed: int,
) -> SpaceMeasures:
    [info] = [info for info in list_spaces(view) if info.space == space]
    point = _point(run_bench_recall(context, space=space, k=k, seed=seed))
    judged: RetrievalResult | None = None
    if queries is not None and qrels is not None:
        judged = run_eval_retrieval(view, queries, qrels, space=space)
    on, plain = _validated(context, view, space, minutes, seed) if minutes else (None, None)
    return SpaceMeasures(
        space=space,
        encoder=info.encoder,
        dimension=info.dimension,
        num_chunks=info.num_chunks,
        size_bytes=info.size_bytes,
        bytes_per_chunk=info.size_bytes / max(1, info.num_chunks),
        recall=point.recall.mean,
        nprobe=point.nprobe,
        p50_latency_s=point.warm_latency.p50_s,
        queries_per_s=point.warm_queries_per_s,
        ndcg_at_10=judged.ndcg_at_10 if judged else None,
        recall_at_k=judged.recall_at_k if judged else None,
        mrr=judged.mrr if judged else None,
        bits_per_byte=on,
        bits_per_byte_without=plain,
    )


def _point(report: RecallReport) -> TimedPoint:
    """The fastest of the timed points with a recall of 0.95, or the best one when none reaches it."""
    good_points = [point for point in report.points if point.recall.mean >= 0.95]
    return good_points[0] if good_points else report.points[-1]


def _validated(context: Context, view: View, space: str, minutes: float, seed: int) -> tuple[float, float]:
    tables = {
        view.snapshot.existing(TableEntry, name).queries: name
        for name in view.snapshot.names(TableEntry)
        if view.snapshot.existing(TableEntry, name).space == space
    }
    held_out = [queries for queries in tables if queries != SELF]
    if SELF not in tables or not held_out:
        raise MissingStep(
            f"space '{space}' has no neighbour tables of its own chunks and of held-out ones",
            remedy=f"Run 'retrodb neighbours --space {space}' and 'retrodb neighbours --space {space} --queries NAME'.",
        )
    params = ValidateParams(minutes=minutes, seed=seed)
    result = run_validate(view, context.progress, params, table=tables[SELF], heldout=tables[held_out[0]])
    bits = result.report.bits_per_byte
    return bits["on"].value, bits["without"].value
