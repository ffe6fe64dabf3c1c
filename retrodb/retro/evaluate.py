"""Measures whether retrieval helps on held-out documents, with confidence intervals.

Shapes: Q query chunks of D documents.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from retrodb.errors import InputError, MismatchError
from retrodb.format.arrays import AnyArray, Float64Array
from retrodb.retro.data import RetroData
from retrodb.retro.training import BATCH_CHUNKS, TrainedModel, batch_loss, check_compatible

CONDITIONS = {
    "on": "the trained model with its neighbours",
    "shuffled": "the same model with the neighbours of other chunks",
    "random": "the same model with chunks drawn at random from the database",
    "off": "the same model with retrieval turned off",
    "without": "a model of the same seed that was trained on the same tokens without neighbours",
}
Z95 = 1.959964  # of the normal distribution: two-sided 95%


@dataclass(frozen=True)
class BitsPerByte:
    """Bits per byte, or a difference of them, with a 95% confidence interval over documents."""

    value: float
    low: float  # lower end of the interval; minus infinity when there is only one document
    high: float  # upper end; infinite when there is only one document


@dataclass(frozen=True)
class EvaluationReport:
    """The benefit of a neighbour table."""

    num_documents: int  # held-out documents
    num_chunks: int  # of these documents
    num_bytes: int  # UTF-8 bytes of their text
    num_tokens_seen: int  # by each of the two models, in training
    bits_per_byte: dict[str, BitsPerByte]  # condition -> bits per byte
    gain: dict[
        str, BitsPerByte
    ]  # condition other than "on" -> its bits per byte minus those of "on", paired by document
    is_good: bool  # whether the gains over without and over shuffled are above 0 with their intervals
    verdict: str  # the same in words


@dataclass(frozen=True)
class Evaluation:
    """The loss of every held-out chunk under every condition, and the report on it."""

    bits: dict[str, Float64Array]  # condition -> (Q,) bits
    report: EvaluationReport


def evaluate_conditions(
    trained: TrainedModel,
    without: TrainedModel,
    heldout: RetroData,
    *,
    seed: int = 0,
    batch_chunks: int = BATCH_CHUNKS,
    device: str = "cpu",
) -> Evaluation:
    """Bits per byte of held-out documents under all `CONDITIONS`.

    Args:
        trained: the model trained with neighbours.
        without: the model trained on the same data `.without()` neighbours, with the progress of `trained`.
        heldout: documents that neither model was trained on, with their neighbours. None of them may be in the database.
        seed: of the shuffled and the random neighbours.

    Raises:
        InputError: when there are no held-out documents.
        MismatchError: when models and data do not fit, or the models saw different numbers of tokens.
    """
    if trained.tokens_seen != without.tokens_seen:
        what = f"one model saw {trained.tokens_seen} tokens, the other {without.tokens_seen}"
        raise MismatchError(what, remedy="Train the second with the progress of the first.")
    runs = {
        "on": (trained, heldout),
        "shuffled": (trained, heldout.shuffled(seed)),
        "random": (trained, heldout.random(seed)),
        "off": (trained, heldout.without()),
        "without": (without, heldout.without()),
    }
    bits = {
        name: chunk_bits(model, data, batch_chunks=batch_chunks, device=device) for name, (model, data) in runs.items()
    }
    return Evaluation(bits, evaluation_report(bits, heldout, trained.tokens_seen))


def chunk_bits(
    trained: TrainedModel, data: RetroData, *, batch_chunks: int = BATCH_CHUNKS, device: str = "cpu"
) -> Float64Array:
    """The loss in bits of every query chunk: (Q,).

    Documents longer than the model's sequence are read in windows that overlap by half, and a chunk is scored in the window
    where it has the longest context (as in the paper: length 2048, stride 1024).

    Raises:
        MismatchError: when the data's tokenizer, chunks or neighbours are not the model's.
    """
    model, config = trained.model.to(device).eval(), trained.model.config
    check_compatible(config, data, trained.tokenizer)
    bits = np.zeros(len(data.query_tokens))
    batches = data.batches(
        config.num_chunks, max(1, config.num_chunks // 2), batch_chunks=batch_chunks, k=config.k, seed=(0,)
    )
    with torch.inference_mode():
        for batch in batches:
            losses = batch_loss(model, batch, device)[1].double().cpu()
            per_chunk = losses.view(*batch.rows.shape, config.chunk_tokens).sum(dim=-1).numpy() / math.log(2)
            bits[batch.rows[batch.is_scored]] = per_chunk[batch.is_scored]
    return bits


def evaluation_report(bits: dict[str, Float64Array], data: RetroData, num_tokens_seen: int) -> EvaluationReport:
    """The report on the losses (Q,) of each condition.

    Raises:
        InputError: when there are no held-out documents.
    """
    if not len(data.query_documents):
        remedy = "Hold some out with 'retrodb ingest --holdout', or name a query set."
        raise InputError("no held-out documents to evaluate on", remedy=remedy)
    bytes_D = sum_by_document(data, data.query_bytes)
    bits_D = {name: sum_by_document(data, values) for name, values in bits.items()}
    gain = {name: ratio_estimate(values - bits_D["on"], bytes_D) for name, values in bits_D.items() if name != "on"}
    is_good = gain["without"].low > 0 and gain["shuffled"].low > 0
    return EvaluationReport(
        num_documents=len(bytes_D),
        num_chunks=len(data.query_documents),
        num_bytes=int(bytes_D.sum()),
        num_tokens_seen=num_tokens_seen,
        bits_per_byte={name: ratio_estimate(values, bytes_D) for name, values in bits_D.items()},
        gain=gain,
        is_good=is_good,
        verdict=_verdict(gain),
    )


def sum_by_document(data: RetroData, amounts: AnyArray) -> Float64Array:
    """The sums (D,) over the chunks of each document of an amount per chunk (Q,)."""
    document = np.unique(data.query_documents, return_inverse=True)[1]
    return np.bincount(document, weights=amounts).astype(np.float64)


def ratio_estimate(amounts_D: Float64Array, bytes_D: Float64Array) -> BitsPerByte:
    """Total amount divided by total bytes, with a 95% interval from the spread over documents.

    The variance is that of a linearised ratio estimator (Cochran, Sampling Techniques, 1977, section 2.11), so nothing is
    resampled and no seed is needed.
    """
    documents, total = len(bytes_D), float(bytes_D.sum())
    value = float(amounts_D.sum()) / total
    if documents < 2:
        return BitsPerByte(value, -math.inf, math.inf)
    squares = float(((amounts_D - value * bytes_D) ** 2).sum())
    half = Z95 * math.sqrt(squares * documents / (documents - 1)) / total
    return BitsPerByte(value, value - half, value + half)


def _verdict(gain: dict[str, BitsPerByte]) -> str:
    def against(name: str) -> str:
        bits = gain[name]
        word = "better than" if bits.low > 0 else "worse than" if bits.high < 0 else "not distinguishable from"
        return f"{word} that of {CONDITIONS[name]} ({bits.value:+.4f} bits per byte, 95% {bits.low:+.4f} to {bits.high:+.4f})"

    without, shuffled = gain["without"].low > 0, gain["shuffled"].low > 0
    if without and shuffled:
        head = "Good: the neighbours help."
    elif shuffled:
        head = "Not yet: the neighbours carry information, but a model without them is as good so far. Train longer."
    elif without:
        head = "Doubtful: the retrieving model is better, but other neighbours help it as much."
    else:
        head = "Not good: the neighbours do not help."
    return f"{head} With retrieval the loss is {against('without')}, and {against('shuffled')}."
