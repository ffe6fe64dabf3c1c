"""Classifiers score by the window where the label is most probable, and are known by what they are made of."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from classifier import train_classifier

from retrodb.errors import InputError, UsageError
from retrodb.screen.classifier import load_classifier

GOOD = [f"the quiet garden number {n} is green and kind" for n in range(40)]
BAD = [f"an ugly hateful insult number {n} is vile" for n in range(40)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_classifier(tmp_path_factory.mktemp("model"), GOOD + BAD, [0] * len(GOOD) + [1] * len(BAD))


def texts(*values: str) -> pa.LargeStringArray:
    return pa.array(values, pa.large_string())


def test_scores_are_those_of_transformers(folder: Path) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    scores = load_classifier(str(folder), "toxic", "cpu").score(texts(*GOOD, *BAD, ""))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.inference_mode():
        expected = [
            model(**tokenizer(text, return_tensors="pt")).logits.softmax(-1)[0, 1].item() for text in [*GOOD, *BAD, ""]
        ]
    np.testing.assert_allclose(scores, expected, atol=1e-5)
    assert scores[:40].max() < 0.5 < scores[40:80].min()


def test_one_bad_window_makes_a_long_text_bad(folder: Path) -> None:
    tagger = load_classifier(str(folder), "1", "cpu")
    long = [" ".join(GOOD), " ".join([*GOOD, *BAD[:8], *GOOD]), " ".join([*GOOD, *BAD[:8]])]
    good, middle, end = tagger.score(texts(*long)).tolist()
    assert good < 0.5 < min(middle, end)
    assert tagger.score(texts(long[1], *GOOD, *BAD))[0] == pytest.approx(middle, abs=1e-5)


def test_a_classifier_is_known_by_its_files_and_label(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    toxic = load_classifier(str(folder), "toxic", "cpu").definition()
    assert load_classifier(str(copy), "TOXIC", "cpu").definition() == toxic
    assert load_classifier(str(copy), "fine", "cpu").definition() != toxic
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\1")
    assert load_classifier(str(copy), "toxic", "cpu").definition() != toxic


def test_labels_are_asked_for_and_named(folder: Path) -> None:
    with pytest.raises(UsageError, match=r"--label: fine \(0\), toxic \(1\)"):
        load_classifier(str(folder), None, "cpu")
    with pytest.raises(UsageError, match=r"no label 'hate'.*toxic \(1\)"):
        load_classifier(str(folder), "hate", "cpu")


def test_what_is_no_classifier_of_safetensors_is_refused(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    with pytest.raises(InputError, match="pickle"):
        load_classifier(str(copy), "toxic", "cpu")
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "architectures": ["BertModel"]}))
    with pytest.raises(InputError, match="not a sequence classifier"):
        load_classifier(str(copy), "toxic", "cpu")
    with pytest.raises(InputError):
        load_classifier(str(tmp_path / "none"), "toxic", "cpu")
