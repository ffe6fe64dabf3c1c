"""Folders that name a tokenizer class: the ids are those of the class, or the folder is refused."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from retrodb.corpus.lm_tokenizer import SAMPLE, Tokenizer
from retrodb.corpus.tokenizer_files import resolve_tokenizer
from retrodb.errors import InputError, MissingDependency, RetroDBError

pytest.importorskip("google.protobuf")
pytest.importorskip("sentencepiece")
transformers = pytest.importorskip("transformers")

from .tokenizer_folders import (  # noqa: E402 - it needs sentencepiece
    CLASSES,
    SENTENCEPIECE,
    TEXT,
    sentencepiece_model,
    write_tokenizer_folder,
)

EDGES = [
    "",
    " ",
    "\n",
    "a" * 300,
    " " * 300,
    "\u0301",
    "e\u0301\u0323",
    "\U0010ffff",
    "\u200b\ufeff",
    "İ ﬁ ½ ᄒ\u1161\u11ab",
]


@pytest.fixture(scope="session")
def class_folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder per class."""
    root = tmp_path_factory.mktemp("classes")
    for name in CLASSES:
        write_tokenizer_folder(root / name, name)
    return root


@cache
def loaded(folder: Path) -> tuple[Tokenizer, transformers.PreTrainedTokenizerBase]:
    return resolve_tokenizer(folder), transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)


def ids_of_class(reference: transformers.PreTrainedTokenizerBase, text: str) -> list[int]:
    ids: list[int] = reference(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    return ids


@pytest.mark.parametrize("name", CLASSES)
def test_folder_has_the_ids_of_auto_tokenizer(class_folders: Path, name: str) -> None:
    tokenizer, reference = loaded(class_folders / name)
    for text in [*SAMPLE, *TEXT[:5], *EDGES]:
        assert tokenizer.encode(text).tolist() == ids_of_class(reference, text)
    assert tokenizer.vocab_size >= len(reference)


@pytest.mark.parametrize("name", CLASSES)
def test_folder_that_transformers_saved_has_the_ids_of_auto_tokenizer(
    class_folders: Path, name: str, tmp_path: Path
) -> None:
    tokenizer, reference = loaded(class_folders / name)
    reference.save_pretrained(tmp_path)
    saved = resolve_tokenizer(tmp_path)
    for text in [*SAMPLE, *EDGES]:
        assert saved.encode(text).tolist() == tokenizer.encode(text).tolist()


def _equal_ids_for_any_text(class_folders: Path, name: str, text: str) -> None:
    tokenizer, reference = loaded(class_folders / name)
    assert tokenizer.encode(text).tolist() == ids_of_class(reference, text)
    if tokenizer.is_lossless:
        assert tokenizer.decode_bytes(tokenizer.encode(text)) == text.encode()


ANY_TEXT = st.one_of(
    st.text(max_size=80),
    st.builds(lambda character, count: character * count, st.characters(codec="utf-8"), st.integers(1, 2_000)),
    st.text(alphabet="\u0300\u0301\u0323\u200d\ufe0f \u00a0\u3000\n", max_size=80),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from(CLASSES), text=ANY_TEXT)
def test_any_text_has_the_ids_of_its_class(class_folders: Path, name: str, text: str) -> None:
    _equal_ids_for_any_text(class_folders, name, text)


@pytest.mark.soak
@settings(max_examples=10_000, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from(CLASSES), text=ANY_TEXT)
def test_many_texts_have_the_ids_of_their_class(class_folders: Path, name: str, text: str) -> None:
    _equal_ids_for_any_text(class_folders, name, text)


@pytest.mark.parametrize(
    ("name", "shift"), [("XLMRobertaTokenizer", 1), ("MBartTokenizer", 1), ("CamembertTokenizer", 4)]
)
def test_fairseq_models_are_shifted(class_folders: Path, name: str, shift: int) -> None:
    tokenizer, plain = loaded(class_folders / name)[0], resolve_tokenizer(class_folders / name / SENTENCEPIECE[name])
    text = "The retrieval database holds chunks of documents"
    assert tokenizer.encode(text).tolist() == [i + shift for i in plain.encode(text).tolist()]


def test_class_of_the_model_type_is_used(tmp_path: Path) -> None:
    (tmp_path / "sentencepiece.bpe.model").write_bytes(sentencepiece_model())
    with pytest.raises(InputError, match=r"depend on the tokenizer class, which this folder does not name\. Add the"):
        resolve_tokenizer(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "xlm-roberta"}))
    plain = resolve_tokenizer(tmp_path / "sentencepiece.bpe.model")
    assert resolve_tokenizer(tmp_path).encode("chunk").tolist() == [i + 1 for i in plain.encode("chunk").tolist()]


def test_merges_that_are_not_byte_level_need_a_class(tmp_path: Path) -> None:
    folder = write_tokenizer_folder(tmp_path, "OpenAIGPTTokenizer")
    (folder / "tokenizer_config.json").unlink()
    with pytest.raises(InputError, match=r"merges\.txt: .*not those of a byte-level BPE.*tokenizer_config\.json"):
        resolve_tokenizer(folder)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"tokenizer_class": "ByT5Tokenizer"}, "ByT5Tokenizer computes in Python"),
        ({"tokenizer_class": "T5Tokenizer"}, "T5Tokenizer needs spiece.model, which is not there"),
        ({"tokenizer_class": "CTRLTokenizer"}, "CTRLTokenizer"),
    ],
)
def test_class_that_cannot_be_stored_is_refused_by_name(tmp_path: Path, config: object, message: str) -> None:
    (tmp_path / "vocab.txt").write_text("[UNK]\n[SEP]\nThe\nthe\n")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=message):
        resolve_tokenizer(tmp_path)


def test_code_of_the_model_is_not_run(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("[UNK]\n[SEP]\nThe\nthe\n")
    config = {"tokenizer_class": "OwnTokenizer", "auto_map": {"AutoTokenizer": ["own.OwnTokenizer", None]}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "own.py").write_text("raise SystemExit('the code of the model ran')")
    with pytest.raises(InputError, match="OwnTokenizer"):
        resolve_tokenizer(tmp_path)


def test_missing_package_is_named(class_folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("retrodb.corpus.tokenizer_classes._is_installed", lambda name: name != "google.protobuf")
    with pytest.raises(
        MissingDependency, match=r"needs protobuf .*T5Tokenizer.* pip install 'retrodb\[sentencepiece\]'"
    ):
        resolve_tokenizer(class_folders / "T5Tokenizer")


@pytest.mark.parametrize("file", ["tokenizer_config.json", "config.json", "tokenizer.json", "vocab.json", "merges.txt"])
@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"\xff\xfe", b"null", b'{"model_type": 3, "tokenizer_class": {}}']
)
def test_broken_files_are_refused_with_their_folder(tmp_path: Path, file: str, content: bytes) -> None:
    folder = write_tokenizer_folder(tmp_path, "GPT2Tokenizer")
    (folder / file).write_bytes(content)
    try:
        resolve_tokenizer(folder)
    except RetroDBError as error:
        message = str(error)
    else:
        message = str(folder)  # it works without this file
    assert str(folder) in message


def test_tokenizer_that_takes_lower_case_by_its_configuration(tmp_path: Path) -> None:
    for is_lower in (True, False):
        folder = write_tokenizer_folder(tmp_path / str(is_lower), "BertTokenizer", do_lower_case=is_lower)
        tokenizer, reference = loaded(folder)
        assert tokenizer.encode("The CHUNK é").tolist() == ids_of_class(reference, "The CHUNK é")
