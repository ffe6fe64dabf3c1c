"""What init refuses: encoders that certainly cannot be loaded."""

from __future__ import annotations

import pytest

import retrodb
from retrodb.config import EmbedParams
from retrodb.encode.check import check_encoder
from retrodb.encode.model_folder import MINILM
from retrodb.errors import InputError, UsageError

DENSE = {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Dense"}


def test_init_accepts_what_embed_can_load(make_model):
    check_encoder(EmbedParams("hashing:32"))
    check_encoder(EmbedParams(str(make_model("bert"))))
    check_encoder(EmbedParams(str(make_model("bert")), query_model=str(make_model("roberta"))))
    check_encoder(EmbedParams(MINILM))


def test_database_is_not_made_with_an_encoder_that_cannot_be_loaded(make_model, made_tokenizer, tmp_path):
    folder = make_model(**{"modules.json": [DENSE]})
    with pytest.raises(InputError, match="module 'Dense'"):
        retrodb.create(tmp_path / "db", tokenizer=str(made_tokenizer), encoder=str(folder))
    assert not (tmp_path / "db").exists()


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("hashing:0", UsageError, "hashing:256"),
        ("", UsageError, "empty"),
        ("no such name!", InputError, "not a valid name"),
        ("/no/such/folder", InputError, "not a folder"),
        ("./no-such-folder", InputError, "not a folder"),
    ],
)
def test_init_refuses_an_encoder_that_cannot_exist(name, error, message):
    with pytest.raises(error, match=message):
        check_encoder(EmbedParams(name))


def test_init_refuses_a_name_of_the_hub_only_if_it_cannot_be_loaded(monkeypatch, tmp_path):
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)

    def answer(error):
        def model_info(self, name, timeout):
            raise error

        monkeypatch.setattr(HfApi, "model_info", model_info)

    answer(OSError("no network"))
    check_encoder(EmbedParams("somebody/some-model"))
    answer(RepositoryNotFoundError.__new__(RepositoryNotFoundError))
    with pytest.raises(InputError, match="has no such model"):
        check_encoder(EmbedParams("somebody/some-model"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="HF_HUB_OFFLINE"):
        check_encoder(EmbedParams("somebody/some-model"))
