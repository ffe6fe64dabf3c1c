"""The entry `drift/<space>`: how well the codebook of a space fits the vectors that were added since its training.

`training` has the same figures for the run that trained the codebook, over all vectors of that run. Tasks read the parts that
the run added and the sizes of all lists, never the older vectors.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from retrodb.ann.codebook import choose_factory, num_lists_of
from retrodb.ann.drift import Drift, imbalance
from retrodb.ann.truth import Truth
from retrodb.engine.run import Engine
from retrodb.engine.task import NoResult, TaskRecord
from retrodb.format.arrays import Int64Array
from retrodb.format.entries import Canaries, DriftEntry, DriftFigures, IndexEntry, SpaceEntry
from retrodb.format.kinds import path_of
from retrodb.format.records import FileRecord
from retrodb.stages.index.codebook_file import codebook_bytes
from retrodb.stages.index.drift_task import (
    CANARIES,
    CanariesPayload,
    dump_truth,
    measure_parts,
    read_truth,
    run_canaries,
    sizes_of_lists,
)
from retrodb.stages.index.live_parts import MissingRows, PartFiles, parts_of
from retrodb.stages.index.operating_point import default_nprobe, stored_point
from retrodb.stages.index.vector_sample import VECTORS, VectorsPayload, drawn_rows, run_vectors_task
from retrodb.stages.planned_view import PlannedSnapshot
from retrodb.stages.seeded_sample import draw_from
from retrodb.stages.transaction import Transaction
from retrodb.view.view import View

NUM_CANARIES = 64  # 640 neighbours: recall@10 of 0.9 is known within 2 * sqrt(0.9 * 0.1 / 640) = 0.024
GROWTH_OF_LISTS = 4  # a codebook is too coarse when one trained now would have this many times as many lists


def choose_canaries(view: View, space: str, missing: Sequence[MissingRows], seed: int) -> Int64Array:
    """A seeded sample of the chunks of missing rows of a new index, ascending. Reads the row bitmaps of their files."""
    snapshot, ids = PlannedSnapshot.of(view), [np.empty(0, np.int64)]
    for file in draw_from(missing, NUM_CANARIES, seed):
        rows = drawn_rows(view.storage, view.files, snapshot, space, file, seed)
        ids.append(file.rows.vectors.first_chunk + rows)
    return np.sort(np.concatenate(ids))


def drift_entry(
    transaction: Transaction,
    engine: Engine,
    space: str,
    index: IndexEntry,
    records: Sequence[TaskRecord[NoResult]],
    canaries: Int64Array | None,
) -> DriftEntry:
    """The entry after new parts were added to those of the transaction's view. Tasks look at the parts.

    Args:
        engine: that runs the tasks.
        index: the entry of the codebook.
        records: records of the tasks that built the new parts.
        canaries: chunk ids for a codebook that was just trained; None keeps the canaries of the codebook in use.
    """
    view, is_new = transaction.view, canaries is not None
    old = None if is_new else view.snapshot.entry(DriftEntry, space)
    if canaries is None:
        canaries = np.array(old.canaries.ids if old else (), dtype=np.int64)
    vectors_file = _vectors_of(transaction, engine, space, canaries) if len(canaries) else None
    truth = _without_deleted(view, read_truth(old.canaries.nearest if old else (), len(canaries)))
    new_parts = [PartFiles(_folder(record.files[0]), record.files) for record in records]
    parts = [*([] if is_new else parts_of(view, space)), *new_parts]
    sizes = sizes_of_lists(transaction.context, transaction.run, parts, index.lists, engine)
    residuals, counts = [old.residual if old else 0.0], [old.added if old else 0]
    path = path_of("codebooks", name=space, digest=index.codebook)
    extra_bytes = codebook_bytes(index.lists, view.snapshot.existing(SpaceEntry, space).dimension)
    measured_parts = measure_parts(
        transaction, engine, path, index.lists, extra_bytes, new_parts, canaries, vectors_file
    )
    for measured in measured_parts:
        residuals += measured.residuals
        truth = truth.merged(read_truth(measured.nearest, len(canaries)))
    counts += [part.num_rows for part in new_parts]
    recall, nprobe = None, _nprobe(view, space, index.lists, is_new=is_new)
    if vectors_file is not None:
        task = CANARIES.task(CanariesPayload(path, vectors_file, dump_truth(truth), nprobe))
        [record] = transaction.run_tasks([task], run_canaries, engine=engine, extra_bytes=extra_bytes, unit="files")
        recall = record.result.recall
    mean = float(np.average(residuals, weights=counts)) if sum(counts) else residuals[0]
    figures = Drift(round(mean, 6), round(imbalance(sizes), 4), None if recall is None else round(recall, 4))
    num_vectors = int(sizes.sum())
    return DriftEntry(
        **vars(figures),
        nprobe=nprobe,
        vectors=num_vectors,
        added=0 if is_new else sum(counts),
        codebook=index.codebook,
        training=old.training if old else DriftFigures(**vars(figures), vectors=num_vectors),
        canaries=Canaries(tuple(canaries.tolist()), dump_truth(truth)),
    )


def _vectors_of(transaction: Transaction, engine: Engine, space: str, ids: Int64Array) -> FileRecord:
    """A file of the run with the vectors of some chunks."""
    payload = VectorsPayload(transaction.run.id, PlannedSnapshot.of(transaction.view), space, tuple(ids.tolist()))
    [record] = transaction.run_tasks([VECTORS.task(payload)], run_vectors_task, engine=engine, unit="files")
    return record.files[0]


def _folder(file: FileRecord) -> str:
    return file.path.rpartition("/")[0]


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


def _nprobe(view: View, space: str, num_lists: int, *, is_new: bool) -> int:
    # The point of an older codebook does not apply to a new one.
    point = None if is_new else stored_point(view, space, None)
    return min(point.nprobe if point and point.nprobe else default_nprobe(num_lists), num_lists)


def _without_deleted(view: View, truth: Truth) -> Truth:
    live = view.chunks.is_live(truth.ids_QK.ravel()).reshape(truth.ids_QK.shape)
    return truth.without(~live)
