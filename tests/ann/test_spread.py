"""Answers do not depend on how rows are spread over parts, or on merging, and contain no deleted rows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrodb.ann.codebook import Codebook
from retrodb.ann.merge_parts import merge_parts
from retrodb.ann.part import build_part, open_part
from retrodb.ann.rerank import LivePart
from retrodb.ann.search import search
from retrodb.ann.training import train

from .conftest import mixture

CODEBOOKS = (
    ("Flat", "inner_product"),
    ("IVF16,SQ8", "squared_l2"),
    ("IVF16,PQ8x4", "inner_product"),
    ("IVF16,PQ8x4fs", "squared_l2"),
    ("IVF16,RaBitQfs", "inner_product"),
)
TRAINING = mixture(10_000, 32, 0)


@pytest.fixture(scope="module", params=CODEBOOKS, ids=str)
def codebook(request: pytest.FixtureRequest) -> Codebook:
    factory, metric = request.param
    return train(TRAINING, factory, 3, metric)


def live(folder: Path, ids: np.ndarray, vectors: np.ndarray, allowed: np.ndarray) -> LivePart:
    return LivePart(open_part(folder), ids, vectors[ids].__getitem__, allowed[ids])


def built(folder: Path, ids: np.ndarray, vectors: np.ndarray, codebook: Codebook) -> Path:
    folder.mkdir()
    build_part(vectors[ids], codebook, folder)
    return folder


def merged(folder: Path, pieces: Sequence[tuple[Path, np.ndarray]], kept: np.ndarray) -> tuple[Path, np.ndarray]:
    folder.mkdir()
    ids = np.sort(np.concatenate([ids_P[kept[ids_P]] for _, ids_P in pieces]))
    merged_rows = [np.where(kept[ids_P], np.searchsorted(ids, ids_P), -1) for _, ids_P in pieces]
    merge_parts([open_part(path) for path, _ in pieces], merged_rows, folder)
    return folder, ids


@settings(max_examples=5, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    identical=st.sampled_from([0, 30, 900]),
    pieces=st.integers(2, 6),
    dead=st.sampled_from([0.0, 0.01, 0.5, 0.99]),
    k=st.integers(1, 40),
    nprobe=st.integers(1, 16),
)
def test_split_and_merged_parts_answer_like_one(
    codebook: Codebook,
    tmp_path_factory: pytest.TempPathFactory,
    seed: int,
    identical: int,
    pieces: int,
    dead: float,
    k: int,
    nprobe: int,
) -> None:
    folder, random = tmp_path_factory.mktemp("spread"), np.random.default_rng(seed)
    vectors = mixture(1200, 32, seed, identical=identical)
    part_of = random.integers(0, pieces, len(vectors))
    allowed = random.random(len(vectors)) >= dead
    allowed[random.integers(len(vectors))] = True
    everything = np.arange(len(vectors))
    part_ids = [np.flatnonzero(part_of == number) for number in range(pieces)]
    folders = [built(folder / str(number), ids, vectors, codebook) for number, ids in enumerate(part_ids)]
    whole = [live(built(folder / "whole", everything, vectors, codebook), everything, vectors, allowed)]
    split = [live(path, ids, vectors, allowed) for path, ids in zip(folders, part_ids, strict=True)]
    all_but_one = list(zip(folders, part_ids, strict=True))[1:]
    path, ids = merged(folder / "some", all_but_one, np.ones(len(vectors), bool))
    partly = [split[0], live(path, ids, vectors, allowed)]
    without_dead = [
        live(*merged(folder / "kept", list(zip(folders, part_ids, strict=True)), allowed), vectors, allowed)
    ]

    queries = vectors[random.integers(0, len(vectors), 12)]
    expected = search(queries, whole, codebook, k, nprobe)
    assert allowed[expected[0][expected[0] >= 0]].all()
    assert ((expected[0] >= 0).sum(axis=1) == min(k, allowed.sum())).all()
    for parts in (split, partly, without_dead):
        ids, distances = search(queries, parts, codebook, k, nprobe)
        assert (expected[0] == ids).all()
        assert (expected[1] == distances).all()
