"""Preparation of a space without stored vectors (`embed --no-keep-vectors`), before its first task.

The codebook has to exist before the vectors do. So a seeded sample of the chunks is embedded first, the codebook is trained on
it, and every task then turns its vectors into an index part at once. The vectors of the sample are reused by their texts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.lib.format import open_memmap

from retrodb.ann.codebook import Codebook, choose_factory, sample_size
from retrodb.ann.exact import Block, exact_topk
from retrodb.ann.exclusion import Exclusion
from retrodb.ann.part import decode, quantize
from retrodb.config import IndexParams
from retrodb.encode.encoder import Encoder
from retrodb.errors import MissingStep
from retrodb.format.arrays import AnyArray, Float16Array, map_array
from retrodb.format.entries import IndexEntry
from retrodb.format.kinds import path_of
from retrodb.format.records import FileRecord
from retrodb.stages.embed.embed_plan import EmbedPlan
from retrodb.stages.embed.pending import PendingRows, own_parts
from retrodb.stages.embed.reuse_tasks import VectorFile
from retrodb.stages.embed.text_sample import draw_texts, forget_texts
from retrodb.stages.index.codebook_file import stored_codebook
from retrodb.stages.index.train_codebook import ROWS_OF_ONE_PROCESS, TrainingSize, train_codebook
from retrodb.stages.index.training_files import SampleFiles
from retrodb.stages.index.training_tasks import TrainingParams
from retrodb.stages.seeded_sample import TASK_ROWS
from retrodb.stages.transaction import Transaction
from retrodb.store.digest import digest_file
from retrodb.store.publish import publish

RECALL_K = 10
_TEXT_BYTES = 700  # of a drawn chunk in memory: about 300 as text, and its copy in a batch
_RECALL_QUERIES = 512  # 5,120 pairs: recall 0.95 is known within 2 * sqrt(0.95 * 0.05 / 5120) = 0.006
_RECALL_ROWS = 20_000  # an exact search of 512 queries over them is 4 * 10^9 multiplications at 384 dimensions
_MIN_SAMPLE = _RECALL_ROWS  # also for a flat index, which needs no training: the recall of the codes is measured on it
_SAMPLE_WINDOW = 16_384  # rows that are encoded together, as in `encode/batching.py`


@dataclass(frozen=True)
class PreparedCodes:
    """What tasks need to turn vectors into codes."""

    codebook: str  # path of its file
    recall: float  # recall@10 of an exact search over the codes, compared with one over the vectors
    samples: tuple[VectorFile, ...] = ()  # vectors of the sample, where this run trained the codebook


def prepare_codes(transaction: Transaction, plan: EmbedPlan, encoder: Encoder) -> PreparedCodes:
    """The codebook of the space. If it has none, train one on a sample of the pending chunks and add it to the change.

    Raises:
        MissingStep: when there is no chunk to train on.
    """
    view, space, entry = plan.view, plan.space, plan.entry
    index = view.snapshot.entry(IndexEntry, space)
    if index is not None:
        return PreparedCodes(path_of("codebooks", name=space, digest=index.codebook), index.codes_recall or 1.0)
    parts = own_parts(plan.pending)
    num_rows = sum(part.num_rows for part in parts)
    if not num_rows:
        raise MissingStep("there is nothing to embed yet", remedy="Run 'retrodb ingest' first.")
    settings = IndexParams(factory=plan.params.factory or "auto")
    factory = plan.params.factory or choose_factory(
        num_rows, entry.dimension, settings.search_memory_bytes, None, entry.metric
    )
    size = max(sample_size(factory), min(_MIN_SAMPLE, num_rows // 10 + 1))
    texts_bytes = _TEXT_BYTES * min(size, num_rows, TASK_ROWS + _SAMPLE_WINDOW)
    training_size = TrainingSize(factory, min(size, num_rows), entry.dimension)
    training_size.check(transaction.context.memory_limit, texts_bytes)
    drawn = _sample_vectors(transaction, space, parts, size, settings.seed, encoder)
    sample = map_array(view.files.open(drawn.vectors))
    params = TrainingParams(transaction.run.id, space, factory, entry.metric, settings.seed)
    files = SampleFiles((drawn.vectors,), (len(sample),))
    engine = transaction.context.engine
    if len(sample) <= ROWS_OF_ONE_PROCESS:
        engine = engine.here()
    with engine.sharing_processes() as engine:
        trained = train_codebook(transaction, engine, params, files, entry.dimension)
    path = path_of("codebooks", name=space, digest=trained.digest)
    recall = round(codes_recall(sample, stored_codebook(transaction.run.storage, path)), 4)
    transaction.set_entry(space, replace(trained.entry(settings, factory), codes_recall=recall))
    return PreparedCodes(path, recall, (drawn,))


def codes_recall(vectors_SD: Float16Array, codebook: Codebook) -> float:
    """Recall@10 of the rounded codes alone: an exact search over them compared with one over the vectors."""
    base = np.asarray(vectors_SD[:_RECALL_ROWS], dtype=np.float32)
    ids = np.arange(len(base))
    queries = base[:_RECALL_QUERIES]
    rounded = decode(*quantize(base, codebook.centre_D), codebook.centre_D)
    others = Exclusion.of(len(queries), document=ids[: len(queries)])
    true_ids, code_ids = (
        exact_topk(queries, [Block(ids, rows_SD, None, {"document": ids})], RECALL_K, codebook.metric, others)[0]
        for rows_SD in (base, rounded)
    )
    is_true = true_ids >= 0
    is_found = (true_ids[:, :, None] == code_ids[:, None, :]).any(axis=2)
    return float(is_found[is_true].mean()) if is_true.any() else 1.0


def _sample_vectors(
    transaction: Transaction, space: str, parts: Sequence[PendingRows], size: int, seed: int, encoder: Encoder
) -> VectorFile:
    """The sample as a file of vectors that the tasks can reuse. What an interrupted run computed is reused too.

    The texts are deleted as soon as they have vectors: a purge must find none in the folder of a run.
    """
    storage, run = transaction.run.storage, transaction.run.id
    path, ids_path = (path_of("runs", run=run, file=name) for name in ("sample.npy", "reuse/sample-ids.npy"))
    if not (storage.exists(path) and storage.exists(ids_path)):
        texts = draw_texts(transaction, space, parts, size, seed)
        batches = (batch.vectors_ND for batch in encoder.encode_windows(texts.windows(_SAMPLE_WINDOW)))
        shape = texts.num_rows, encoder.identity.dimension
        publish(storage, "runs", ids_path, partial(_write_blocks, blocks=texts.ids(), dtype=np.int64, shape=shape[:1]))
        publish(storage, "runs", path, partial(_write_blocks, blocks=batches, dtype=np.float16, shape=shape))
    forget_texts(transaction.run)
    files = [FileRecord("runs", "", name, digest_file(storage.local(name))) for name in (path, ids_path)]
    return VectorFile(replace(files[0], num_rows=len(map_array(storage.local(ids_path)))), files[1])


def _write_blocks(
    local: Path, blocks: Iterable[AnyArray], dtype: type[np.float16 | np.int64], shape: tuple[int, ...]
) -> None:
    """Write an array block by block."""
    array, start = open_memmap(local, mode="w+", dtype=dtype, shape=shape), 0
    for block in blocks:
        array[start : start + len(block)] = block
        start += len(block)
    assert start == len(array), "every drawn chunk has a vector"
