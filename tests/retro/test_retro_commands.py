"""`retrodb retro`: trained on an export, killed and continued, used on another database."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from made_documents import made_text, write_documents

import retrodb
from retrodb.config import RetroTrainParams
from retrodb.database import Database, retro_eval, retro_fit, retro_train
from retrodb.engine.progress import Progress
from retrodb.errors import InputError, MismatchError, MissingFileError, UsageError
from retrodb.format.entries import SpaceEntry
from retrodb.retro import run_training
from retrodb.retro.checkpoint import TRAINING, load_checkpoint, load_unfinished
from retrodb.retro.run_training import run_retro_train
from retrodb_cli.main import main

OPTIONS: dict[str, Any] = {"size": "tiny", "steps": 6, "batch_chunks": 8, "save_every": 2, "device": "cpu"}


@pytest.fixture
def database(make_database: Callable[..., Database]) -> Database:
    made = make_database({str(i): made_text(i, 150 + 10 * i) for i in range(6)})
    made.embed()
    made.index()
    made.neighbours(k=2, spare_neighbours=0)
    return made


@pytest.fixture
def arrays(database: Database, tmp_path: Path) -> Path:
    database.export(tmp_path / "arrays", to="arrays")
    return tmp_path / "arrays"


class Killed(Exception):
    pass


def kill_after(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    save = run_training.save_unfinished

    def save_and_die(unfinished: Any, folder: Path) -> None:
        save(unfinished, folder)
        if len(unfinished.trained.progress) >= steps:
            raise Killed

    monkeypatch.setattr(run_training, "save_unfinished", save_and_die)


@pytest.mark.parametrize("steps", [2, 4])
def test_a_killed_training_continues_to_the_same_weights(
    steps: int, arrays: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = retro_train(data=arrays, out=tmp_path / "whole", **OPTIONS)
    with monkeypatch.context() as patched:
        kill_after(steps, patched)
        with pytest.raises(Killed):
            retro_train(data=arrays, out=tmp_path / "killed", **OPTIONS)
    again = retro_train(data=arrays, out=tmp_path / "killed", **OPTIONS)
    assert again.continued_at_step == steps
    assert replace(again, checkpoint="", continued_at_step=0, tokens_per_s=0) == replace(
        whole, checkpoint="", tokens_per_s=0
    )
    first, second = (load_checkpoint(tmp_path / name) for name in ("whole", "killed"))
    assert first.losses == second.losses
    weights = second.model.state_dict()
    assert all(torch.equal(weight, weights[name]) for name, weight in first.model.state_dict().items())
    assert not (tmp_path / "killed" / TRAINING).exists()


def test_an_existing_training_is_never_overwritten(
    arrays: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        kill_after(2, patched)
        with pytest.raises(Killed):
            retro_train(data=arrays, out=tmp_path / "model", **OPTIONS)
    with pytest.raises(UsageError, match="another training stopped here after 2 steps"):
        retro_train(data=arrays, out=tmp_path / "model", **OPTIONS | {"seed": 3})
    retro_train(data=arrays, out=tmp_path / "model", **OPTIONS)
    with pytest.raises(UsageError, match="a trained model of 6 steps"):
        retro_train(data=arrays, out=tmp_path / "model", **OPTIONS)
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / TRAINING).write_bytes(b"torn")
    with pytest.raises(InputError, match="not a training"):
        load_unfinished(tmp_path / "torn")


def test_a_model_stores_the_fingerprints_of_its_training_data(database: Database, arrays: Path, tmp_path: Path) -> None:
    result = retro_train(data=arrays, out=tmp_path / "model", **OPTIONS)
    view = database.view()
    assert result.tokenizer == view.settings.tokenizer_sha256
    assert result.encoder == view.snapshot.existing(SpaceEntry, "default").fingerprint
    on_export = retro_eval(checkpoint=tmp_path / "model", data=arrays, device="cpu")
    on_database = database.retro_eval(checkpoint=tmp_path / "model", device="cpu")
    assert on_export.bits_per_byte == on_database.bits_per_byte
    assert set(on_export.bits_per_byte) == {"on", "shuffled", "off"}


def test_another_tokenizer_or_encoder_is_refused_with_both_fingerprints(
    database: Database, arrays: Path, tmp_path: Path
) -> None:
    retro_train(data=arrays, out=tmp_path / "model", **OPTIONS)
    for name in ("tokenizer", "encoder"):
        card = json.loads((tmp_path / "model" / "config.json").read_text())
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(card | {name: "another"}))
        (tmp_path / name / "model.safetensors").write_bytes((tmp_path / "model" / "model.safetensors").read_bytes())
        with pytest.raises(MismatchError, match=f"trained with {name} another, the data has {card[name]}"):
            database.retro_eval(checkpoint=tmp_path / name)


def test_the_same_model_reads_other_facts_from_another_database(
    database: Database, arrays: Path, tmp_path: Path
) -> None:
    retro_train(data=arrays, out=tmp_path / "model", **OPTIONS)
    weights = (tmp_path / "model" / "model.safetensors").read_bytes()
    fact = made_text(2, 150)
    options: dict[str, Any] = {"checkpoint": tmp_path / "model", "max_tokens": 70, "temperature": 0, "device": "cpu"}
    before = retrodb.open(database.path, memory_bytes=100 << 20).retro_generate(
        fact, **options
    )  # no limit of this command
    assert {chunk.doc_id for chunk in before.retrieved} >= {"2"}
    changed = write_documents(tmp_path / "changed.jsonl", {"2": "Something else is true now. " * 40})
    database.ingest([changed], source="made")
    database.embed()
    database.index()
    after = database.retro_generate(fact, **options)
    assert [chunk.text for chunk in after.retrieved] != [chunk.text for chunk in before.retrieved]
    assert not {chunk.text for chunk in after.retrieved if chunk.doc_id == "2"} & {
        chunk.text for chunk in before.retrieved
    }
    assert (tmp_path / "model" / "model.safetensors").read_bytes() == weights
    assert not database.retro_generate(fact, **options | {"without": True}).retrieved


def test_a_retrofit_is_trained_killed_and_used_with_its_base(
    database: Database, arrays: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    vocab = database.view().settings.vocab_size
    shape = transformers.GPT2Config(
        vocab_size=vocab + 7, n_positions=256, n_embd=32, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0
    )
    transformers.GPT2LMHeadModel(shape).save_pretrained(tmp_path / "base")
    options = {name: value for name, value in OPTIONS.items() if name != "size"} | {"base": tmp_path / "base"}
    with monkeypatch.context() as patched:
        kill_after(2, patched)
        with pytest.raises(Killed):
            retro_fit(data=arrays, out=tmp_path / "fit", **options)
    assert retro_fit(data=arrays, out=tmp_path / "fit", **options).continued_at_step == 2
    found = database.retro_eval(checkpoint=tmp_path / "fit", base=tmp_path / "base", device="cpu")
    assert np.isfinite(found.gain["off"].value)
    written = database.retro_generate(
        made_text(1, 60), checkpoint=tmp_path / "fit", base=tmp_path / "base", max_tokens=5
    )
    assert written.text
    with pytest.raises(MissingFileError, match=r"config\.json"):
        retro_fit(data=arrays, out=tmp_path / "none", **options | {"base": tmp_path / "nowhere"})


def test_the_baseline_never_sees_a_neighbour(arrays: Path, tmp_path: Path) -> None:
    params = RetroTrainParams(**OPTIONS | {"without": True})
    run_retro_train(arrays, tmp_path / "without", params, Progress())
    found = retro_eval(checkpoint=tmp_path / "without", data=arrays, device="cpu")
    assert found.num_documents == 6


def test_the_commands_train_evaluate_and_generate(
    database: Database, arrays: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = ["--checkpoint", str(tmp_path / "model")]
    train = [
        "retro",
        "train",
        "--data",
        str(arrays),
        "--out",
        str(tmp_path / "model"),
        "--size",
        "tiny",
        "--steps",
        "3",
    ]
    assert main([*train, "--batch-chunks", "8", "--device", "cpu", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["num_steps"] == 3
    assert main(["retro", "eval", *model, "--db", database.path]) == 0
    assert "gain over" in capsys.readouterr().out
    assert main(["retro", "eval", *model]) == 2
    assert "either --data DIR or --db DB" in capsys.readouterr().err
    assert main(["retro", "generate", *model, "--db", database.path, "--max-tokens", "4", made_text(1, 40)]) == 0
    assert "tokenizer" in capsys.readouterr().out
