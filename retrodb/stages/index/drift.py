"""The entry `drift/<space>`: how well the codebook of a space fits the vectors that were added since its training.

`training` has the same figures for the run that trained the codebook, over all vectors of that run. An index run reads the
parts that it added and the sizes of all lists, never the older vectors.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from retrodb.ann.codebook import Codebook, choose_factory, num_lists_of
from retrodb.ann.drift import Drift, Truth, imbalance, residual, truth_in_part
from retrodb.ann.part import Part, open_part
from retrodb.engine.task import NoResult, TaskRecord
from retrodb.format.arrays import BoolArray, Int64Array
from retrodb.format.entries import Canaries, DriftEntry, DriftFigures, IndexEntry, SpaceEntry
from retrodb.stages.index.live_parts import PartFiles, parts_of
from retrodb.stages.index.operating_point import default_nprobe, stored_point
from retrodb.store.storage import Storage
from retrodb.store.verify import VerifiedFiles
from retrodb.view.view import View

NUM_CANARIES = 64  # 640 neighbours: recall@10 of 0.9 is known within 2 * sqrt(0.9 * 0.1 / 640) = 0.024
GROWTH_OF_LISTS = 4  # a codebook is too coarse when one trained now would have this many times as many lists


def choose_canaries(ids: Int64Array, seed: int) -> Int64Array:
    """A seeded sample of the ids, ascending."""
    return np.sort(np.random.default_rng(seed).permutation(ids)[:NUM_CANARIES])


def drift_entry(
    view: View, space: str, codebook: Codebook, records: Sequence[TaskRecord[NoResult]], canaries: Int64Array | None
) -> DriftEntry:
    """The entry after new parts were added to those of `view`.

    Args:
        records: records of the tasks that built the new parts.
        canaries: chunk ids for a codebook that was just trained; None keeps the canaries of the codebook in use.
    """
    is_new = canaries is not None
    old = None if is_new else view.snapshot.entry(DriftEntry, space)
    if canaries is None:
        canaries = np.array(old.canaries.ids if old else (), dtype=np.int64)
    vectors = view.vectors(space, canaries).astype(np.float32)
    has_vector: BoolArray = np.asarray(vectors.any(axis=1))  # compaction may have dropped some
    truth = _without_deleted(view, _read_truth(old, len(canaries)))
    old_parts = [] if is_new else parts_of(view, space)
    sizes = sum((np.diff(_part(view, part).offsets_L1) for part in old_parts), np.zeros(codebook.num_lists, np.int64))
    residuals, counts = [old.residual if old else 0.0], [old.added if old else 0]
    for record in records:
        part, ids = _new_part(view.storage, record)
        sizes = sizes + np.diff(part.offsets_L1)
        residuals.append(residual(part, codebook))
        counts.append(part.meta.rows)
        if len(canaries):
            truth = truth.merged(truth_in_part(vectors, canaries, part, ids))
    nprobe = _nprobe(view, space, codebook, is_new=is_new)
    recall = _only(truth, has_vector).recall(vectors[has_vector], codebook, nprobe) if has_vector.any() else None
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
    """Why a new codebook would improve the index, as of the last index run; empty when it would not."""
    entry, index = view.snapshot.entry(DriftEntry, space), view.snapshot.entry(IndexEntry, space)
    if entry is None or index is None or entry.codebook != index.codebook:
        return []
    at_training = _figures(entry.training)
    reasons = _figures(entry).reasons(at_training) if index.lists > 1 else []
    params, stored = index.params, view.snapshot.existing(SpaceEntry, space)
    if params.factory == "auto":
        better = choose_factory(
            entry.vectors, stored.dimension, params.search_memory_bytes, params.bytes_per_vector, stored.metric
        )
        if num_lists_of(better) >= GROWTH_OF_LISTS * index.lists and index.factory != better:
            reasons.append(
                f"{entry.training.vectors:,} vectors became {entry.vectors:,}: today's choice would be {better}"
            )
    return reasons


def _figures(entry: DriftEntry | DriftFigures) -> Drift:
    return Drift(entry.residual, entry.imbalance, entry.canary_recall)


def _nprobe(view: View, space: str, codebook: Codebook, *, is_new: bool) -> int:
    # The point of an older codebook does not apply to a new one.
    point = None if is_new else stored_point(view, space, None)
    return min(point.nprobe if point and point.nprobe else default_nprobe(codebook.num_lists), codebook.num_lists)


def _part(view: View, files: PartFiles) -> Part:
    folders = {view.files.open(record).parent for record in files.records}
    return open_part(folders.pop())


def _new_part(storage: Storage, record: TaskRecord[NoResult]) -> tuple[Part, Int64Array]:
    file = record.files[0]  # all files of a part cover the same rows
    return open_part(storage.local(file.path).parent), file.first_chunk + VerifiedFiles(storage).rows(file).present


def _without_deleted(view: View, truth: Truth) -> Truth:
    live = view.chunks.is_live(truth.ids_CK.ravel()).reshape(truth.ids_CK.shape)
    return truth.without(~live)


def _only(truth: Truth, canaries: BoolArray) -> Truth:
    return Truth(truth.ids_CK[canaries], truth.distances_CK[canaries], truth.lists_CK[canaries])


def _read_truth(entry: DriftEntry | None, num_canaries: int) -> Truth:
    truth = Truth.empty(num_canaries)
    for row, neighbours in enumerate(entry.canaries.nearest if entry else ()):
        for rank, (chunk, list_, distance) in enumerate(neighbours):
            truth.ids_CK[row, rank], truth.lists_CK[row, rank] = chunk, list_
            truth.distances_CK[row, rank] = distance
    return truth


def _dump_truth(truth: Truth) -> tuple[tuple[tuple[int, int, float], ...], ...]:
    """For each canary (chunk, list, distance) of its known neighbours; distances have the fewest digits that round-trip."""
    rows = zip(truth.ids_CK.tolist(), truth.lists_CK.tolist(), truth.distances_CK, strict=True)
    return tuple(
        tuple((id_, list_, float(str(d))) for id_, list_, d in zip(*row, strict=True) if id_ >= 0) for row in rows
    )
