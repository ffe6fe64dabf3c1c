from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from retrodb.errors import InputError, MismatchError
from retrodb.retro.evaluate import CONDITIONS, chunk_bits, evaluate_conditions, evaluation_report, ratio_estimate
from retrodb.retro.model import RetroModel
from retrodb.retro.model_config import config_of_size
from retrodb.retro.training import schedule_by_steps, train_model

from .synthetic import near_copies, rows

DATA = near_copies(400)
SEEN, HELDOUT = rows(DATA, slice(0, 1440)), rows(DATA, slice(1440, 1600))


def test_a_model_with_near_copies_beats_the_one_trained_without_on_held_out_documents() -> None:
    config = replace(config_of_size("tiny", 128), width=32, encoder_width=32, k=1, learning_rate=6e-3)
    on = train_model(RetroModel(config), SEEN, schedule_by_steps(300), batch_chunks=8)
    without = train_model(RetroModel(config), SEEN.without(), on.progress, batch_chunks=8)
    evaluation = evaluate_conditions(on, without, HELDOUT)
    result = evaluation.report
    assert result.is_good
    assert result.verdict.startswith("Good: the neighbours help.")
    assert result.gain["without"].value > 0.2
    assert set(result.bits_per_byte) == set(CONDITIONS) == set(evaluation.bits)
    assert result.num_documents == 40
    assert on.tokens_seen == without.tokens_seen


def test_models_that_saw_different_numbers_of_tokens_are_not_compared() -> None:
    config = replace(config_of_size("tiny", 128), width=32, encoder_width=32, k=1, learning_rate=6e-3)
    one, two = (train_model(RetroModel(config), SEEN, schedule_by_steps(steps), batch_chunks=8) for steps in (1, 2))
    with pytest.raises(MismatchError, match="one model saw 128 tokens, the other 256"):
        evaluate_conditions(one, two, HELDOUT)


def test_a_long_document_is_scored_once_in_overlapping_windows() -> None:
    data = near_copies(3, chunks=11)
    untrained = train_model(
        RetroModel(replace(config_of_size("tiny", 128), num_chunks=4, k=1)), data, schedule_by_steps(0)
    )
    bits = chunk_bits(untrained, data, batch_chunks=8)
    assert chunk_bits(untrained, data, batch_chunks=64) == pytest.approx(bits, rel=1e-5)
    for weight in (untrained.model.embedding.weight, untrained.model.frequency):
        weight.data.zero_()
    bits = chunk_bits(untrained, data, batch_chunks=8)
    assert bits == pytest.approx(np.full(33, 16 * 7.0), rel=0.1)  # log2(128) each, for a model that knows nothing


def test_the_interval_contains_the_true_value_in_about_95_percent_of_cases() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        bytes_D = rng.integers(50, 500, 100).astype(float)
        estimate = ratio_estimate(bytes_D * (0.1 + rng.normal(0, 0.2, 100)), bytes_D)
        covered += estimate.low <= 0.1 <= estimate.high
    assert 0.91 < covered / 400 < 0.98


def test_the_verdict_demands_both_comparisons() -> None:
    bits = {name: np.full(160, 50.0) + np.arange(160) % 7 for name in CONDITIONS}
    noise = np.random.default_rng(0).random(160)
    for without, shuffled, head in [(1, 1, "Good"), (0, 1, "Not yet"), (1, 0, "Doubtful"), (0, 0, "Not good")]:
        losses = bits | {"without": bits["on"] + without * noise, "shuffled": bits["on"] + shuffled * noise}
        result = evaluation_report(losses, HELDOUT, num_tokens_seen=0)
        assert result.verdict.startswith(head)
        assert result.is_good == (head == "Good")


def test_one_document_is_never_enough_and_none_is_refused() -> None:
    assert ratio_estimate(np.array([3.0]), np.array([2.0])).high == math.inf
    single = evaluation_report({name: np.ones(4) for name in CONDITIONS}, rows(DATA, slice(0, 4)), 0)
    assert not single.is_good
    with pytest.raises(InputError, match="no held-out documents"):
        evaluation_report({}, rows(DATA, slice(0, 0)), 0)
