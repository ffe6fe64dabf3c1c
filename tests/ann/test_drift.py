"""Drift: measured at every add from the new rows only."""

from __future__ import annotations

from functools import reduce
from itertools import pairwise

import numpy as np
import pytest

from retrodb.ann.codebook import Codebook
from retrodb.ann.drift import CANARY_K, Drift, imbalance, residual, truth_in_part
from retrodb.ann.exact import exact_topk
from retrodb.ann.part import Part
from retrodb.ann.training import train
from retrodb.ann.truth import Truth

from .conftest import Spread, mixture

VECTORS = mixture(3000, 32, 0)
CUTS = (0, 900, 901, 3000)


@pytest.fixture(scope="module")
def codebook() -> Codebook:
    return train(VECTORS, "IVF16,SQ8", 1, "inner_product")


@pytest.fixture
def parts(codebook: Codebook, spread: Spread) -> list[Part]:
    return [live.part for live in spread(VECTORS, codebook, CUTS[1:-1])]


def test_truth_that_grows_part_by_part_is_the_truth_of_all(codebook: Codebook, parts: list[Part]) -> None:
    canaries = np.arange(0, 3000, 60)
    vectors = VECTORS[canaries].astype(np.float32)
    ids = [np.arange(*pair) for pair in pairwise(CUTS)]
    truths = [truth_in_part(vectors, canaries, part, ids_P) for part, ids_P in zip(parts, ids, strict=True)]
    truth = reduce(Truth.merged, truths, Truth.empty(len(canaries), CANARY_K))
    expected = exact_topk(vectors, VECTORS, CANARY_K + 1, "inner_product")[0]
    overlap = [len(set(a) & set(b)) for a, b in zip(truth.ids_QK.tolist(), expected.tolist(), strict=True)]
    assert np.mean(overlap) > 0.95 * CANARY_K  # int8 codes swap those that are equally near
    assert not (truth.ids_QK == canaries[:, None]).any()
    list_N = np.concatenate([part.lists_N.whole() for part in parts])
    assert (truth.lists_QK == list_N[truth.ids_QK]).all()
    assert truth.recall(vectors, codebook, 16) == 1.0
    assert 0.2 < (truth.recall(vectors, codebook, 1) or 0) < 1.0


def test_deleted_neighbours_do_not_count_for_recall(codebook: Codebook, parts: list[Part]) -> None:
    canaries = np.array([5, 6])
    vectors = VECTORS[canaries].astype(np.float32)
    truth = truth_in_part(vectors, canaries, parts[0], np.arange(900))
    without_all = truth.without(np.ones_like(truth.ids_QK, dtype=bool))
    assert without_all.recall(vectors, codebook, 16) is None
    half = truth.without(np.arange(CANARY_K)[None, :] % 2 == 0)
    assert half.recall(vectors, codebook, 16) == 1.0


def test_residual_of_foreign_vectors_is_larger(codebook: Codebook, spread: Spread) -> None:
    foreign = mixture(2000, 32, 99)
    expected = residual(spread(VECTORS, codebook)[0].part, codebook)
    assert residual(spread(foreign, codebook)[0].part, codebook) > 1.1 * expected
    direct = VECTORS - codebook.centroids_LD[codebook.nearest_lists(VECTORS, 1)[:, 0]]
    assert expected == pytest.approx((direct.astype(np.float64) ** 2).sum(axis=1).mean(), rel=0.01)


def test_imbalance_is_one_for_equal_lists_and_the_number_of_lists_for_one_giant() -> None:
    assert imbalance(np.array([7, 7, 7, 7])) == 1
    assert imbalance(np.array([28, 0, 0, 0])) == 4


def test_reasons_for_retraining_name_each_exceeded_limit() -> None:
    training = Drift(residual=0.5, imbalance=1.2, canary_recall=0.95)
    assert Drift(0.54, 1.7, 0.94).reasons(training) == []
    assert Drift(0.56, 1.9, 0.92).reasons(training) == ["residual +12%", "imbalance x1.6", "canary recall -3.0 points"]
    assert Drift(0.5, 1.2, None).reasons(training) == []
