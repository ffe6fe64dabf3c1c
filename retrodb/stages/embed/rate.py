"""How fast an embed run was, compared with the peak rate of its device, and how long the remaining chunks would take."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from retrodb.encode.encoder import Encoder
from retrodb.stages.embed.pending import PendingRows, own_parts
from retrodb.stages.embed.task import EncodingTotals
from retrodb.stages.embed.text_sample import drawn_ids
from retrodb.view.view import View

_SAMPLE_CHUNKS = 256  # that an estimate encodes: seconds on one core with MiniLM
_SAMPLE_FILES = 8  # that they are drawn from


@dataclass(frozen=True)
class Rates:
    """Rates of an encoder, by the wall clock."""

    chunks_per_s: float
    tokens_per_s: float
    tflops_per_s: float  # of the model's matrix products; 0 for an encoder without
    matrix_tflops_per_s: float  # of one large matrix product on the same device, measured in the same run
    fraction_of_matrix_rate: float
    remaining_s: float = 0.0  # for the remaining chunks, at this rate


def measure_rates(
    encoder: Encoder, totals: EncodingTotals, counts: Mapping[str, int], num_processes: int, elapsed_s: float
) -> Rates | None:
    """The rates of a run; None when nothing was computed.

    Args:
        totals: what this process computed. Where several processes worked, the counts of all tasks are used instead.
    """
    if num_processes > 1:
        num_rows = counts.get("chunks", 0) + counts.get("query_rows", 0) - counts["reused"] - counts["repeated"]
        mean_length = np.array([counts["tokens"] // max(1, num_rows)], dtype=np.int32)
        totals = EncodingTotals(num_rows, counts["tokens"], num_rows * encoder.num_flops(mean_length), elapsed_s)
    if totals.num_rows == 0 or totals.elapsed_s == 0:
        return None
    return _rates(encoder, totals, num_processes, 0)


def estimate_rates(view: View, encoder: Encoder, space: str, pending: Sequence[PendingRows]) -> Rates | None:
    """The rates on a small sample of the pending chunks of the database, and the time that all of them would take."""
    parts = own_parts(pending)
    if not parts:
        return None
    chosen = sorted(np.random.default_rng(0).permutation(len(parts))[:_SAMPLE_FILES].tolist())
    ids = drawn_ids(view, space, [parts[number] for number in chosen], _SAMPLE_CHUNKS, seed=0)
    texts = view.chunks.texts(ids)
    encoder.encode_passages(texts[:8])  # the first batch is slow
    start = time.perf_counter()
    batch = encoder.encode_passages(texts)
    elapsed_s = time.perf_counter() - start
    totals = EncodingTotals(len(texts), batch.num_tokens, encoder.num_flops(batch.num_tokens_N), elapsed_s)
    return _rates(encoder, totals, 1, sum(part.num_rows for part in parts))


def _rates(encoder: Encoder, totals: EncodingTotals, num_processes: int, num_remaining: int) -> Rates:
    per_s = 1 / totals.elapsed_s
    peak = encoder.matrix_rate() * num_processes
    return Rates(
        chunks_per_s=totals.num_rows * per_s,
        tokens_per_s=totals.num_tokens * per_s,
        tflops_per_s=totals.num_flops * per_s / 1e12,
        matrix_tflops_per_s=peak / 1e12,
        fraction_of_matrix_rate=totals.num_flops * per_s / peak if peak else 0.0,
        remaining_s=num_remaining / (totals.num_rows * per_s),
    )
