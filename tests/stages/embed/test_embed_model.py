"""Embedding with a model: too little memory, damaged weights, and a separate model for queries."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from made_documents import made_text
from made_models import ScarceModel, write_model
from safetensors.torch import load_file, save_file

from retrodb.config import EmbedParams
from retrodb.database import Database
from retrodb.encode.resolve import resolve_encoder
from retrodb.encode.transformer_encoder import TransformerEncoder
from retrodb.errors import InputError, MismatchError, RetroDBError, UsageError
from retrodb.format.entries import SpaceEntry
from retrodb.stages.embed.space_encoder import EncoderHardware, load_encoder

Make = Callable[..., Database]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "model", "bert")


@pytest.fixture
def scarce(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Limits the tokens of a batch that the device has memory for."""
    load_encoder.cache_clear()
    embed = TransformerEncoder._embed

    def limit(max_tokens: int) -> None:
        def scarcely(self: TransformerEncoder, ids_BL: object) -> object:
            return ScarceModel(lambda ids: embed(self, ids), max_tokens)(ids_BL)  # type: ignore[arg-type]

        monkeypatch.setattr(TransformerEncoder, "_embed", scarcely)

    return limit


def all_vectors(database: Database, space: str) -> bytes:
    view = database.view()
    return view.vectors(space, np.arange(view.chunks.end)).tobytes()


def test_too_little_memory_halves_the_budget_of_the_whole_run_with_a_note(
    make_database: Make, model: Path, scarce: Callable[[int], None]
) -> None:
    texts = {str(i): made_text(i, 300) for i in range(4)}
    half = make_database(texts, "half")
    half.embed(space="s", encoder=str(model), batch_tokens=160)
    scarce(200)
    short = make_database(texts, "short")
    result = short.embed(space="s", encoder=str(model), batch_tokens=320)
    assert result.batch_tokens == 160
    assert "out of memory on cpu with 320 tokens a batch: planned again with 160" in result.note
    assert all_vectors(short, "s") == all_vectors(half, "s")
    assert short.gc(dry_run=True).open_runs == ()


def test_a_run_that_was_halved_stays_halved_when_it_is_continued(
    make_database: Make, model: Path, scarce: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    database = make_database({str(i): made_text(i, 300) for i in range(4)})
    scarce(200)
    finish = TransformerEncoder._finish
    with monkeypatch.context() as patch:
        patch.setattr(TransformerEncoder, "_finish", lambda self, window: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            database.embed(space="s", encoder=str(model), batch_tokens=320)
    assert TransformerEncoder._finish is finish
    scarce(10_000)  # another machine, with room
    result = database.embed(space="s", encoder=str(model), batch_tokens=320)
    assert result.batch_tokens == 160
    assert "an earlier attempt ran out of memory" in result.note


def test_too_little_memory_for_half_a_batch_is_an_error_with_a_remedy(
    make_database: Make, model: Path, scarce: Callable[[int], None]
) -> None:
    database = make_database({"a": made_text(1, 300)})
    scarce(5)
    with pytest.raises(
        RetroDBError, match=r"with 160 tokens a batch. Use smaller batches: 'retrodb embed --batch-tokens"
    ):
        database.embed(space="s", encoder=str(model), batch_tokens=320)
    assert database.view().snapshot.names(SpaceEntry) == []
    assert database.gc(dry_run=True).open_runs == ()


def test_a_vector_with_nan_is_refused_with_its_chunk(make_database: Make, model: Path) -> None:
    weights = load_file(model / "model.safetensors")
    weights["embeddings.word_embeddings.weight"][:] = float("nan")
    save_file(weights, model / "model.safetensors")
    database = make_database({"a": made_text(1, 300)})
    before = database.view().snapshot.number
    with pytest.raises(InputError, match=r"chunk 0 \(chunks/.*NaN"):
        database.embed(space="s", encoder=str(model))
    assert database.view().snapshot.number == before


def test_queries_can_have_a_separate_model(make_database: Make, model: Path, tmp_path: Path) -> None:
    queries = write_model(tmp_path / "queries", "bert-masked-lm")
    database = make_database({"a": made_text(1, 300)})
    database.embed(space="two", encoder=str(model), query_model=str(queries))
    database.index(space="two")
    identity = database.view().snapshot.existing(SpaceEntry, "two").identity
    assert identity["query_model"]["weights"] != identity["weights"]
    text = database.view().chunks.texts(np.array([0]))
    [[hit]] = database.search(text, k=1, space="two")
    towers = resolve_encoder(str(model), query_model=str(queries))
    nearest = database.view().vectors("two", np.array([hit.chunk_id])).astype(np.float32)
    assert hit.measure == "squared_distance"
    assert hit.score == pytest.approx(((towers.encode_queries(text) - nearest) ** 2).sum(), rel=1e-3)
    with pytest.raises(MismatchError, match="query_model"):
        database.embed(space="two", query_model=str(model))


def test_conventions_are_passed_to_the_encoder(make_database: Make, model: Path) -> None:
    database = make_database({"a": made_text(1, 300)})
    database.embed(space="content", encoder=str(model), pooling_span="content", pooling="max")
    identity = database.view().snapshot.existing(SpaceEntry, "content").identity
    assert (identity["pooling_span"], identity["pooling"]) == ("content", "max")
    encoder = load_encoder(EmbedParams(str(model), pooling_span="content", pooling="max"), EncoderHardware(threads=1))
    expected = encoder.encode_passages(database.view().chunks.texts(np.array([0]))).vectors_ND
    np.testing.assert_array_equal(database.view().vectors("content", np.array([0])), expected)
    with pytest.raises(UsageError, match="unknown pooling_span"):
        database.embed(space="odd", encoder=str(model), pooling_span="odd")
