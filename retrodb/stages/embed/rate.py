"""How fast an embed run was, beside what its device can do at most, and how long the rest would take."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from retrodb.encode.encoder import Encoder
from retrodb.format.arrays import Int64Array
from retrodb.stages.embed.task import Meter
from retrodb.view.view import View

_SAMPLE_CHUNKS = 256  # that a projection encodes: seconds of a core with MiniLM


@dataclass(frozen=True)
class Rates:
    """Rates of an encoder, by the wall clock."""

    chunks_per_s: float
    tokens_per_s: float
    tflops_per_s: float  # of the model's products; 0 for an encoder without
    matrix_tflops_per_s: float  # of a large product on the same device, measured beside
    share_of_matrix_rate: float
    remaining_s: float = 0.0  # for the chunks that are left, at this rate


def measure_rates(
    encoder: Encoder, meter: Meter, counts: Mapping[str, int], processes: int, elapsed_s: float
) -> Rates | None:
    """The rates of a run; None when nothing was computed.

    Args:
        meter: what this process did; where several processes did the work, the counts of all tasks stand for it.
    """
    if processes > 1:
        chunks = counts.get("chunks", 0) + counts.get("query_rows", 0) - counts["reused"] - counts["repeated"]
        mean_length = np.array([counts["tokens"] // max(1, chunks)], dtype=np.int32)
        meter = Meter(chunks, counts["tokens"], chunks * encoder.num_flops(mean_length), elapsed_s)
    if meter.chunks == 0 or meter.elapsed_s == 0:
        return None
    return _rates(encoder, meter, processes, 0)


def project(view: View, encoder: Encoder, chunk_ids: Int64Array) -> Rates | None:
    """The rates on a small sample of these chunks, and the time that all of them would take."""
    if not len(chunk_ids):
        return None
    sample = np.sort(np.random.default_rng(0).permutation(chunk_ids)[:_SAMPLE_CHUNKS])
    texts = view.chunks.texts(sample)
    encoder.encode_passages(texts[:8])  # the first batch is slow
    start = time.perf_counter()
    batch = encoder.encode_passages(texts)
    elapsed_s = time.perf_counter() - start
    meter = Meter(len(texts), batch.num_tokens, encoder.num_flops(batch.num_tokens_N), elapsed_s)
    return _rates(encoder, meter, 1, len(chunk_ids))


def _rates(encoder: Encoder, meter: Meter, processes: int, remaining_chunks: int) -> Rates:
    per_s = 1 / meter.elapsed_s
    peak = encoder.matrix_rate() * processes
    return Rates(
        chunks_per_s=meter.chunks * per_s,
        tokens_per_s=meter.tokens * per_s,
        tflops_per_s=meter.flops * per_s / 1e12,
        matrix_tflops_per_s=peak / 1e12,
        share_of_matrix_rate=meter.flops * per_s / peak if peak else 0.0,
        remaining_s=remaining_chunks / (meter.chunks * per_s),
    )
