"""Embedding: every key chunk gets one vector, and never from another encoder than that of the space."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from made_documents import made_text, write_documents

from retrodb.database import Database
from retrodb.encode import hashing
from retrodb.encode.hashing import HashingEncoder
from retrodb.encode.identity import Provenance
from retrodb.errors import MismatchError, UsageError
from retrodb.format.entries import SpaceEntry
from retrodb.stages.embed.space_encoder import EncoderHardware, load_encoder, on_own_gpu

Make = Callable[..., Database]


def vectors_of(database: Database, space: str = "default") -> tuple[np.ndarray, list[str]]:
    view = database.view()
    ids = np.arange(view.chunks.end)
    ids = ids[view.coverage("vectors", space).covered_mask(0, view.chunks.end)]
    return view.vectors(space, ids), view.chunks.texts(ids, deleted_too=True)


def test_every_key_chunk_gets_the_vector_of_its_text(make_database: Make) -> None:
    database = make_database({"a": made_text(1, 300), "b": made_text(2, 90), "short": "ka"})
    result = database.embed()
    vectors, texts = vectors_of(database)
    assert result.num_chunks == len(texts) > 3
    np.testing.assert_array_equal(vectors, HashingEncoder(32).encode_passages(texts).vectors_ND)
    assert "ka" in texts, "a document that is short as a whole is a key all the same"


def test_a_second_run_embeds_nothing_and_commits_nothing(make_database: Make) -> None:
    database = make_database({"a": made_text(1, 300)})
    first = database.embed()
    again = database.embed()
    assert again.num_chunks == 0
    assert again.snapshot == first.snapshot


def test_only_new_texts_are_embedded_and_known_texts_reuse_their_vectors(
    make_database: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = make_database({"a": made_text(1, 300)})
    before = database.embed().num_chunks
    encoded: list[str] = []
    encode = HashingEncoder.encode_windows

    def counting(self: HashingEncoder, windows: object) -> object:
        kept = [list(window) for window in windows]  # type: ignore[attr-defined]
        encoded.extend(str(text) for window in kept for text in window)
        return encode(self, kept)

    monkeypatch.setattr(HashingEncoder, "encode_windows", counting)
    same = {"copy": made_text(1, 300), "new": made_text(3, 200)}
    database.ingest([write_documents(tmp_path / "more.jsonl", same)], source="other")
    result = database.embed()
    assert result.num_reused == before
    assert len(encoded) == result.num_chunks - before
    vectors, texts = vectors_of(database)
    np.testing.assert_array_equal(vectors, HashingEncoder(32).encode_passages(texts).vectors_ND)


def test_a_killed_run_continues_after_its_last_window(make_database: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    database = make_database({str(i): made_text(i, 200) for i in range(6)})
    with_small_windows(monkeypatch)
    encode = HashingEncoder.encode_windows
    _fail_at(monkeypatch, encode, 3)
    with pytest.raises(KeyboardInterrupt):
        database.embed()
    done = []

    def counting(self: HashingEncoder, given: object) -> object:
        for window in encode(self, given):  # type: ignore[arg-type]
            done.append(len(window.vectors_ND))
            yield window

    monkeypatch.setattr(HashingEncoder, "encode_windows", counting)
    result = database.embed()
    assert sum(done) == result.num_chunks - 3 * 4
    vectors, texts = vectors_of(database)
    np.testing.assert_array_equal(vectors, HashingEncoder(32).encode_passages(texts).vectors_ND)


def with_small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four rows a window."""
    monkeypatch.setattr(hashing, "Provenance", partial(Provenance, window_rows=4))
    load_encoder.cache_clear()


def _fail_at(monkeypatch: pytest.MonkeyPatch, encode: Callable[..., object], number: int) -> None:
    def failing(self: HashingEncoder, given: object) -> object:
        for at, window in enumerate(encode(self, given)):  # type: ignore[arg-type,var-annotated]
            if at == number:
                raise KeyboardInterrupt
            yield window

    monkeypatch.setattr(HashingEncoder, "encode_windows", failing)


def test_another_encoder_is_refused_with_the_difference(make_database: Make) -> None:
    database = make_database({"a": made_text(1, 100)})
    database.embed()
    with pytest.raises(MismatchError, match="dimension: 32, 64"):
        database.embed(encoder="hashing:64")


def test_a_second_space_changes_no_byte_of_the_first(make_database: Make) -> None:
    database = make_database({"a": made_text(1, 100)})
    database.embed()
    before = {record.path: record.digest for record in database.view().manifest.files("vectors", "default")}
    database.embed(space="wide", encoder="hashing:64")
    view = database.view()
    assert {record.path: record.digest for record in view.manifest.files("vectors", "default")} == before
    assert view.snapshot.names(SpaceEntry) == ["default", "wide"]
    assert vectors_of(database, "wide")[0].shape[1] == 64


def test_a_new_space_needs_an_encoder(make_database: Make) -> None:
    with pytest.raises(UsageError, match="no encoder is named"):
        make_database({"a": "ka lo"}).embed(space="other")


def test_a_dry_run_counts_and_writes_nothing(make_database: Make) -> None:
    database = make_database({"a": made_text(1, 100)})
    assert database.embed(dry_run=True).num_chunks > 0
    assert database.view().snapshot.names(SpaceEntry) == []


def test_a_dry_run_estimates_the_time_from_a_sample(make_database: Make) -> None:
    database = make_database({"a": made_text(1, 300)})
    rates = database.embed(dry_run=True).rates
    assert rates is not None
    assert rates.remaining_s == pytest.approx(database.embed(dry_run=True).num_chunks / rates.chunks_per_s)
    done = database.embed()
    assert done.rates is not None
    assert done.rates.chunks_per_s > 0
    assert done.rates.tokens_per_s / done.rates.chunks_per_s == pytest.approx(done.num_tokens / done.num_chunks)
    assert database.embed().rates is None, "nothing was computed"


def test_windows_are_deleted_after_their_vectors_are_published(
    make_database: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_small_windows(monkeypatch)
    database = make_database({"a": made_text(1, 300)})
    database.embed()
    assert not [path for path in database.view().storage.list("runs") if "/windows/" in path]


def test_the_size_of_a_window_changes_no_vector(make_database: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = {str(i): made_text(i % 5, 150) for i in range(9)}  # some are equal
    whole, cut = make_database(texts, "whole"), make_database(texts, "cut")
    whole.embed()
    with_small_windows(monkeypatch)
    cut.embed()
    load_encoder.cache_clear()
    assert vectors_of(whole)[0].tobytes() == vectors_of(cut)[0].tobytes()


def test_each_worker_takes_its_own_gpu() -> None:
    names = ["SpawnProcess-5", "SpawnProcess-6", "SpawnProcess-7"]
    devices = {on_own_gpu(EncoderHardware(gpus=3), name).device for name in names}
    assert devices == {"cuda:0", "cuda:1", "cuda:2"}
    assert on_own_gpu(EncoderHardware(device="cuda:1"), "SpawnProcess-5").device == "cuda:1"


def test_unscreened_chunks_are_not_embedded(make_database: Make, tmp_path: Path) -> None:
    database = make_database({"leaked": made_text(7, 60), "kept": made_text(8, 60)})
    database.dedup([write_documents(tmp_path / "test.jsonl", {"q": made_text(7, 60)})], name="t")
    database.embed()
    _, texts = vectors_of(database)
    assert "".join(texts) in made_text(8, 60)
