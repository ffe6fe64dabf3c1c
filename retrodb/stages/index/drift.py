"""The entry `drift/<space>`: how what was added since the training of a space's codebook lies in its lists.

`training` has the same numbers of the run that trained it, over all that it indexed. An add reads what it added and the
sizes of all lists, never the vectors that were there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from retrodb.ann.codebook import Codebook, choose_factory, num_lists_of
from retrodb.ann.drift import Drift, Truth, imbalance, residual, truth_in_part
from retrodb.ann.part import Part, open_part
from retrodb.engine.task import TaskRecord
from retrodb.format.arrays import BoolArray, Int64Array
from retrodb.format.entries import Canaries, DriftEntry, DriftFigures, IndexEntry, SpaceEntry
from retrodb.stages.index.live_parts import PartFiles, parts_of
from retrodb.stages.index.operating_point import default_nprobe, stored_point
from retrodb.store.storage import Storage
from retrodb.view.view import View

NUM_CANARIES = 64
GROWTH_OF_LISTS = 4  # a codebook with a quarter of the lists that one trained now would have is too coarse


def choose_canaries(ids: Int64Array, seed: int) -> Int64Array:
    """Some of the ids, ascending, always the same ones."""
    return np.sort(np.random.default_rng(seed).permutation(ids)[:NUM_CANARIES])


def drift_entry(
    view: View, space: str, codebook: Codebook, records: Sequence[TaskRecord[Any]], canaries: Int64Array | None
) -> DriftEntry:
    """The entry after an add to the parts of `view`.

    Args:
        records: of the tasks that built the new parts.
        canaries: ids of chunks for a codebook that was just trained; None keeps those of the codebook in use.
    """
    is_new = canaries is not None
    old = None if is_new else view.snapshot.entry(DriftEntry, space)
    if canaries is None:
        canaries = np.array(old.canaries.ids if old else (), dtype=np.int64)
    vectors = view.vectors(space, canaries).astype(np.float32)
    there: BoolArray = np.asarray(vectors.any(axis=1))  # compaction may have taken some
    truth = _without_deleted(view, _read_truth(old, len(canaries)))
    kept = [] if is_new else parts_of(view, space)
    sizes = sum((np.diff(_part(view, part).offsets_L1) for part in kept), np.zeros(codebook.num_lists, np.int64))
    residuals, counts = [old.residual if old else 0.0], [old.added if old else 0]
    for record in records:
        part, ids = _new_part(view.storage, record)
        sizes = sizes + np.diff(part.offsets_L1)
        residuals.append(residual(part, codebook))
        counts.append(part.meta.rows)
        if len(canaries):
            truth = truth.merged(truth_in_part(vectors, canaries, part, ids))
    nprobe = _nprobe(view, space, codebook, is_new=is_new)
    recall = _only(truth, there).recall(vectors[there], codebook, nprobe) if there.any() else None
    mean = float(np.average(residuals, weights=counts)) if sum(counts) else residuals[0]
    figures = Drift(round(mean, 6), round(imbalance(sizes), 4), None if recall is None else round(recall, 4))
    num_vectors = int(sizes.sum())
    return DriftEntry(
        **vars(figures),
        nprobe=nprobe,
        vectors=num_vectors,
        added=0 if is_new else sum(counts),
        codebook=codebook.digest,
        training=old.training if old else DriftFigures(**vars(figures), vectors=num_vectors),
        canaries=Canaries(tuple(canaries.tolist()), _dump_truth(truth)),
    )


def reasons_to_retrain(view: View, space: str) -> list[str]:
    """Why a new codebook would pay, as the last add showed; empty when it would not."""
    entry, index = view.snapshot.entry(DriftEntry, space), view.snapshot.entry(IndexEntry, space)
    if entry is None or index is None or entry.codebook != index.codebook:
        return []
    at_training = _figures(entry.training)
    reasons = _figures(entry).reasons(at_training) if index.lists > 1 else []
    params, stored = index.params, view.snapshot.existing(SpaceEntry, space)
    if params.factory == "auto":
        better = choose_factory(
            entry.vectors, stored.dimension, params.memory_bytes, params.bytes_per_vector, stored.metric
        )
        if num_lists_of(better) >= GROWTH_OF_LISTS * index.lists and index.factory != better:
            reasons.append(
                f"{entry.training.vectors:,} vectors became {entry.vectors:,}: today's choice would be {better}"
            )
    return reasons


def _figures(entry: DriftEntry | DriftFigures) -> Drift:
    return Drift(entry.residual, entry.imbalance, entry.canary_recall)


def _nprobe(view: View, space: str, codebook: Codebook, *, is_new: bool) -> int:
    point = None if is_new else stored_point(view, space, None)  # an older codebook's point says nothing of a new one
    return min(point.nprobe if point and point.nprobe else default_nprobe(codebook.num_lists), codebook.num_lists)


def _part(view: View, files: PartFiles) -> Part:
    folders = {view.files.open(record).parent for record in files.records}
    return open_part(folders.pop())


def _new_part(storage: Storage, record: TaskRecord[Any]) -> tuple[Part, Int64Array]:
    span = record.files[0]
    return open_part(storage.local(span.path).parent), span.first_chunk + span.row_set.present


def _without_deleted(view: View, truth: Truth) -> Truth:
    live = view.chunks.is_live(truth.ids_CK.ravel()).reshape(truth.ids_CK.shape)
    return truth.without(~live)


def _only(truth: Truth, canaries: BoolArray) -> Truth:
    return Truth(truth.ids_CK[canaries], truth.distances_CK[canaries], truth.lists_CK[canaries])


def _read_truth(entry: DriftEntry | None, num_canaries: int) -> Truth:
    truth = Truth.empty(num_canaries)
    for row, known in enumerate(entry.canaries.nearest if entry else ()):
        for place, (chunk, list_, distance) in enumerate(known):
            truth.ids_CK[row, place], truth.lists_CK[row, place] = chunk, list_
            truth.distances_CK[row, place] = distance
    return truth


def _dump_truth(truth: Truth) -> tuple[tuple[tuple[int, int, float], ...], ...]:
    """For each canary [chunk, list, distance] of what is known; the shortest digits that give each float32 again."""
    rows = zip(truth.ids_CK.tolist(), truth.lists_CK.tolist(), truth.distances_CK, strict=True)
    return tuple(
        tuple((id_, list_, float(str(d))) for id_, list_, d in zip(*row, strict=True) if id_ >= 0) for row in rows
    )
