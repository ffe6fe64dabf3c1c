from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrodb.errors import FormatVersionError, InputError, MissingFileError
from retrodb.export.arrays_format import DIMENSIONS
from retrodb.retro import data as retro_data
from retrodb.retro.data import RetroData, load_arrays
from retrodb.retro.sampling import sample_by_shards, sample_documents

from .synthetic import near_copies, random_table

SIZES = st.lists(st.integers(1, 30), min_size=1, max_size=8)


def written(data: RetroData, folder: Path, **changes: Any) -> Path:
    meta = {"format": "retrodb-arrays", "version": 1, "chunk_tokens": data.chunk_tokens, "k": data.neighbours.shape[1]}
    meta |= {"vocab_size": data.vocab_size, "pad_token": data.vocab_size, "tokenizer": data.tokenizer} | changes
    (folder / "meta.json").write_text(json.dumps(meta))
    for name in DIMENSIONS:
        np.save(folder / f"{name}.npy", getattr(data, name))
    return folder


@settings(max_examples=40, deadline=None)
@given(SIZES, st.integers(0, 99))
def test_a_value_is_chunk_and_continuation_with_padding_where_they_are_missing(sizes: list[int], seed: int) -> None:
    data = random_table(np.random.default_rng(seed), sizes)
    rows = np.arange(-1, len(data.tokens))
    for row, value in zip(rows, data.values(rows), strict=True):
        expected: list[int] = []
        for part in (row, data.continuations[row] if row >= 0 else -1):
            chunk = data.tokens[part][: data.lengths[part]].tolist() if part >= 0 else []
            expected += chunk + [data.pad_token] * (data.chunk_tokens - len(chunk))
        assert value.tolist() == expected


def test_an_empty_database_gives_padding() -> None:
    data = random_table(np.random.default_rng(0), [9])
    empty = replace(data, tokens=data.tokens[:0], lengths=data.lengths[:0], continuations=data.continuations[:0])
    assert (empty.without().neighbour_values(np.arange(3), 2) == data.pad_token).all()
    assert (empty.without().random(0).neighbours == -1).all()


@settings(max_examples=40, deadline=None)
@given(SIZES, st.integers(1, 6), st.integers(1, 6), st.integers(1, 9), st.integers(1, 40), st.integers(0, 99))
def test_windows_read_every_chunk_once_with_its_own_document_only(
    sizes: list[int], num_chunks: int, stride: int, batch_chunks: int, shard_rows: int, seed: int
) -> None:
    data = random_table(np.random.default_rng(seed), sizes)
    scored = []
    stride = min(stride, num_chunks)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(retro_data, "SHARD_ROWS", shard_rows)
        batches = list(data.batches(num_chunks, stride, batch_chunks=batch_chunks, k=2, seed=(seed,)))
    for batch in batches:
        for row, is_scored, tokens in zip(batch.rows, batch.is_scored, batch.tokens, strict=True):
            real = row[row >= 0]
            assert len(set(data.query_documents[real])) == 1
            assert (np.diff(real) == 1).all()
            assert len(real) <= num_chunks
            assert tokens.tolist() == data.queries(row).ravel().tolist()
            scored += row[is_scored].tolist()
        if batch.neighbours is not None:
            assert (batch.neighbours[batch.rows < 0] == data.pad_token).all()
    assert sorted(scored) == list(range(len(data.query_tokens)))


def test_the_seed_gives_the_batches() -> None:
    data = near_copies(40)
    first, again, other = (
        [b.rows.tolist() for b in data.batches(4, 4, batch_chunks=8, k=1, seed=(s,))] for s in (0, 0, 1)
    )
    assert first == again != other


@pytest.mark.parametrize("document_rows", [3, 4096])
def test_an_epoch_reads_few_shards_at_a_time_in_an_order_of_its_seed(
    monkeypatch: pytest.MonkeyPatch, document_rows: int
) -> None:
    monkeypatch.setattr(retro_data, "SHARD_ROWS", 30)
    monkeypatch.setattr(retro_data, "SHUFFLED_SHARDS", 2)
    monkeypatch.setattr(retro_data, "_DOCUMENT_ROWS", document_rows)
    data = near_copies(100)  # 4 chunks a document
    shards = data.shards()
    assert [(rows.start, len(rows)) for rows in shards] == [(n * 32, min(32, 400 - n * 32)) for n in range(13)]
    epochs = []
    for seed in (1, 2):
        order = list(data.order(2, 2, 8, (seed,)))
        assert max(len(windows.first) for windows, _ in order) <= 2 * 16
        epochs.append([windows.first[chosen].tolist() for windows, chosen in order])
        assert sorted(first for batch in epochs[-1] for first in batch) == list(range(0, 400, 2))
    assert epochs[0] != epochs[1]
    firsts = [batch[0] // 32 for batch in epochs[0]]
    assert firsts != sorted(firsts), "shards are shuffled"
    assert any(len({first // 32 for first in batch}) == 2 for batch in epochs[0]), "shards are mixed"


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.integers(1, 9), max_size=6), min_size=1, max_size=6), st.integers(0, 120), st.integers(0, 9)
)
def test_a_sample_by_shards_has_whole_documents_and_no_more_than_asked(
    shards: list[list[int]], max_chunks: int, seed: int
) -> None:
    """Documents until there are enough: without the last one there would not be, and all documents if there are too few."""
    documents = [
        np.repeat(100 * number + np.arange(len(sizes)), np.array(sizes, dtype=int))
        for number, sizes in enumerate(shards)
    ]
    bounds = np.concatenate(([0], np.cumsum([len(each) for each in documents]))).astype(int)
    read: list[int] = []

    def draw(number: int, wanted: int) -> np.ndarray:
        read.append(number)
        return bounds[number] + sample_documents(documents[number], wanted, (seed, number))

    rows = sample_by_shards([len(each) + 3 for each in documents], draw, max_chunks, seed)  # sizes with deleted chunks
    everything = np.concatenate(documents)
    assert (np.diff(rows) > 0).all()
    assert len(rows) == np.isin(everything, everything[rows]).sum(), "documents are whole"
    assert len(rows) >= min(max_chunks, len(everything))
    assert len(rows) < max_chunks + 9 or max_chunks == 0 == len(rows)
    assert len(read) <= 2 * len(documents)


def test_every_document_is_sampled_equally_often() -> None:
    counts = np.zeros(30)
    data = [np.repeat(np.arange(10), 2), np.repeat(np.arange(10, 30), 2)]
    for seed in range(400):
        rows = sample_by_shards(
            [20, 40], lambda n, wanted, seed=seed: 20 * n + sample_documents(data[n], wanted, (seed, n)), 12, seed
        )
        counts[np.unique(np.concatenate(data)[rows])] += 1
    assert abs(counts.mean() - 400 * 6 / 30) < 8
    assert np.abs(counts - counts.mean()).max() < 45  # five standard deviations


def test_shuffled_random_and_without_change_only_the_neighbours() -> None:
    data = random_table(np.random.default_rng(3), [30, 20, 7, 1])
    assert sorted(map(tuple, data.shuffled(1).neighbours)) == sorted(map(tuple, data.neighbours))
    assert (data.shuffled(1).neighbours != data.neighbours).any()
    assert ((data.random(1).neighbours < 0) == (data.neighbours < 0)).all()
    assert (data.random(1).neighbours != data.neighbours).any()
    assert (data.without().neighbours == -1).all()


def test_a_sample_keeps_whole_documents_in_order() -> None:
    data = random_table(np.random.default_rng(3), [30, 20, 7, 1, 13])
    sample = data.sample(8, seed=0)
    kept = set(sample.query_documents)
    assert 1 <= len(kept) < 5
    assert sample.query_tokens.tolist() == data.query_tokens[np.isin(data.query_documents, list(kept))].tolist()
    assert len(sample.query_tokens) >= 8
    assert len(data.sample(999, seed=0).query_tokens) == len(data.query_tokens)
    assert len(np.unique(data.sample(1, seed=0).query_documents)) == 1


@pytest.mark.parametrize("sizes", [[30, 1, 5], [9] * 3000])
def test_arrays_are_read_as_they_were_written(tmp_path: Path, sizes: list[int]) -> None:
    data = random_table(np.random.default_rng(0), sizes)
    loaded = load_arrays(written(data, tmp_path))
    for field in DIMENSIONS:
        assert np.array_equal(getattr(loaded, field), getattr(data, field))
    assert isinstance(loaded.tokens, np.memmap) == (len(sizes) > 3)


def test_a_folder_that_is_no_arrays_export_is_refused_with_the_file_name(tmp_path: Path) -> None:
    data = random_table(np.random.default_rng(0), [30, 1, 5])
    with pytest.raises(MissingFileError, match=r"meta\.json"):
        load_arrays(tmp_path)
    for changes, error in [
        ({"format": "other"}, InputError),
        ({"version": 2}, FormatVersionError),
        ({"pad_token": 0}, InputError),
        ({"k": 3}, InputError),
        ({"chunk_tokens": 64}, InputError),
    ]:
        with pytest.raises(error):
            load_arrays(written(data, tmp_path, **changes))
    written(data, tmp_path)
    (tmp_path / "lengths.npy").write_bytes(b"")
    with pytest.raises(InputError, match=r"lengths\.npy"):
        load_arrays(tmp_path)
    np.save(tmp_path / "lengths.npy", np.ones(3))
    with pytest.raises(InputError, match=r"lengths\.npy: float64"):
        load_arrays(tmp_path)
    (tmp_path / "lengths.npy").unlink()
    with pytest.raises(MissingFileError, match=r"lengths\.npy"):
        load_arrays(tmp_path)
    (tmp_path / "meta.json").write_text("{")
    with pytest.raises(InputError, match="no JSON"):
        load_arrays(tmp_path)
