"""Plans compared with real builds here: bytes within 25%, time within a factor of two, memory never below what is needed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from made_documents import made_text
from planned_runs import (
    COMPARED_S,
    Comparison,
    RealBuild,
    build,
    compared_bytes,
    compared_memory,
    compared_times,
    plan_of,
    real_documents,
    write_texts,
)
from real_corpora import unpack

from retrodb.corpus.train_tokenizer import train_byte_bpe
from retrodb.database import measure_plan_rates
from retrodb.maintain.plan.command import PipelinePlan

BYTES_OF_TOKEN = 4.2  # of English text


def wrong_bytes(plan: PipelinePlan, real: RealBuild) -> list[Comparison]:
    return [each for each in compared_bytes(plan, real) if not 0.75 <= each.ratio <= 1.25]


def wrong_memory(plan: PipelinePlan, real: RealBuild) -> list[Comparison]:
    return [each for each in compared_memory(plan, real) if each.ratio < 1]


def wrong_times(plan: PipelinePlan, real: RealBuild) -> list[Comparison]:
    compared = (each for each in compared_times(plan, real) if each.real >= COMPARED_S)
    return [each for each in compared if not 0.5 <= each.ratio <= 2]


def test_a_plan_of_a_small_build_has_its_bytes_and_enough_memory(tmp_path: Path) -> None:
    """Its times are not compared: half of them is the start of the commands."""
    texts = [(f"d{number}", made_text(number, 300)) for number in range(1200)]
    tokenizer = tmp_path / "tokenizer.json"
    train_byte_bpe([text for _, text in texts[:50]], 2000).save(tokenizer)
    documents = write_texts(tmp_path / "documents.jsonl", texts, 1e9)
    rates = tmp_path / "rates.json"
    measure_plan_rates(rates, sample=[documents], encoder="hashing:64", tokenizer=str(tokenizer), folder=tmp_path)
    real = build(tmp_path / "build", documents, str(tokenizer), "hashing:64")
    plan = plan_of(real, "hashing:64", rates)
    assert not wrong_bytes(plan, real)
    assert not wrong_memory(plan, real)


@pytest.mark.soak
@pytest.mark.corpora
@pytest.mark.parametrize("tokens", [10**7, 3 * 10**7])
def test_a_plan_of_a_real_build_has_its_bytes_times_and_memory(tokens: int, tmp_path: Path) -> None:
    documents = write_texts(tmp_path / "documents.jsonl", real_documents(), tokens * BYTES_OF_TOKEN)
    tokenizer = str(unpack("tokenizers.tar.zst", tmp_path / "tokenizers") / "gpt2")
    rates = tmp_path / "rates.json"
    measure_plan_rates(rates, sample=[documents], encoder="hashing:384", tokenizer=tokenizer, folder=tmp_path)
    real = build(tmp_path / "build", documents, tokenizer, "hashing:384")
    plan = plan_of(real, "hashing:384", rates)
    wrong: Sequence[Comparison] = [*wrong_bytes(plan, real), *wrong_memory(plan, real), *wrong_times(plan, real)]
    assert not wrong
