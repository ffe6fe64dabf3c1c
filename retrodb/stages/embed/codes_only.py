"""A space without stored vectors: what `embed --no-keep-vectors` does before its first task.

The codebook has to be there before the vectors are, so a seeded sample of the chunks is embedded first, the codebook is trained
on it, and every task then turns its vectors into a part of the index at once. The sample's vectors are used again by content.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from retrodb.ann.codebook import Codebook, choose_factory, sample_size, train
from retrodb.ann.exact import Block, exact_topk
from retrodb.ann.exclusion import Exclusion
from retrodb.ann.part import quantize
from retrodb.config import EmbedParams, IndexParams
from retrodb.encode.encoder import Encoder
from retrodb.engine.run import Run
from retrodb.errors import MissingStep
from retrodb.format.arrays import Float16Array, Int64Array, map_array, save_array
from retrodb.format.entries import IndexEntry, SpaceEntry
from retrodb.format.kinds import path_of
from retrodb.format.records import FileRecord
from retrodb.stages.embed.reuse import VectorFile
from retrodb.stages.index.codebook_file import index_entry, publish_codebook
from retrodb.store.storage import Storage
from retrodb.view.view import View

RECALL_K = 10
_RECALL_QUERIES = 512
_RECALL_ROWS = 20_000
_MIN_SAMPLE = 20_000  # also where a flat index needs no training: the recall of the codes is measured on it
_SAMPLE_WINDOW = 16_384


@dataclass(frozen=True)
class CodesOnly:
    """What the tasks need to turn vectors into codes."""

    codebook: str  # path of its file
    recall: float  # recall@10 of an exact search over the codes, beside one over the vectors
    files: tuple[FileRecord, ...] = ()  # the codebook, where this run trained it
    entry: IndexEntry | None = None  # of the index, likewise
    samples: tuple[VectorFile, ...] = ()  # vectors of the sample, of use for equal texts


def prepare_codes(
    view: View,
    run: Run,
    space: str,
    params: EmbedParams,
    entry: SpaceEntry,
    encoder: Encoder,
    ids: Int64Array,
) -> CodesOnly:
    """The codebook of the space, trained on a sample of the chunks to embed if it has none."""
    index = view.snapshot.entry(IndexEntry, space)
    if index is not None:
        return CodesOnly(path_of("codebooks", name=space, digest=index.codebook), index.codes_recall or 1.0)
    if not len(ids):
        raise MissingStep("there is nothing to embed yet", remedy="Run 'retrodb ingest' first.")
    dimension, metric = entry.dimension, entry.metric
    settings = IndexParams(factory=params.factory or "auto")
    factory = params.factory or choose_factory(len(ids), dimension, settings.memory_bytes, None, metric)
    size = max(sample_size(factory), min(_MIN_SAMPLE, len(ids) // 10 + 1))
    chosen = np.sort(np.random.default_rng(settings.seed).permutation(ids)[:size])
    path = path_of("runs", run=run.id, file="sample.npy")
    sample = _sample(run.storage, path, view, encoder, chosen)
    codebook = train(sample, factory, settings.seed, metric)
    record = publish_codebook(run.storage, space, codebook)
    recall = round(codes_recall(sample, codebook), 4)
    described = replace(index_entry(codebook, settings, factory), codes_recall=recall)
    return CodesOnly(record.path, recall, (record,), described, (VectorFile(path, chosen),))


def codes_recall(vectors_SD: Float16Array, codebook: Codebook) -> float:
    """Recall@10 that is lost by nothing but the rounding of vectors to codes: exact searches over both, side by side."""
    base = np.asarray(vectors_SD[:_RECALL_ROWS], dtype=np.float32)
    ids = np.arange(len(base))
    queries = base[:_RECALL_QUERIES]
    codes_SD, scales_S2 = quantize(base)
    rounded = codes_SD.astype(np.float32) * scales_S2[:, :1]
    others = Exclusion.of(len(queries), document=ids[: len(queries)])
    truth, found = (
        exact_topk(queries, [Block(ids, side, None, {"document": ids})], RECALL_K, codebook.metric, others)
        for side in (base, rounded)
    )
    is_true = truth[0] >= 0
    is_found = (truth[0][:, :, None] == found[0][:, None, :]).any(axis=2)
    return float(is_found[is_true].mean()) if is_true.any() else 1.0


def _sample(storage: Storage, path: str, view: View, encoder: Encoder, ids: Int64Array) -> Float16Array:
    """The vectors (S, D) of the sample; those that an interrupted run had made are used again."""
    if not storage.exists(path):
        spans = [ids[start : start + _SAMPLE_WINDOW] for start in range(0, len(ids), _SAMPLE_WINDOW)]
        batches = encoder.encode_windows(view.chunks.texts(span) for span in spans)
        vectors = np.concatenate([batch.vectors_ND for batch in batches])
        with storage.stage(path) as local:
            save_array(local, vectors)
    return map_array(storage.local(path))
