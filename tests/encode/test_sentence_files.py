"""Model folders of sentence-transformers: equal vectors, or a refusal that names the setting."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
from made_models import MODELS
from safetensors.torch import load_file, save_file

from retrodb.config import EmbedParams
from retrodb.encode.check import check_encoder
from retrodb.encode.conventions import Overrides, read_conventions
from retrodb.encode.encoder import NotFiniteError
from retrodb.encode.resolve import resolve_encoder
from retrodb.errors import InputError, RetroDBError

sentence_transformers = pytest.importorskip("sentence_transformers")

TEXTS = ["the cat sat", "a mat.", "THE Cat", "sitting on the mat", "中 é", "b c d e f g h i", "a", "cat " * 80]
TRANSFORMER = {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}
POOLING = {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}
NORMALIZE = {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"}
# The tokenizer.json as it is: most classes of transformers rebuild it for another kind of vocabulary.
AS_IT_IS = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "[PAD]"}


def modules(pooling=None, *, normalize=False, transformer="", **files):
    """The files of a model with modules."""
    listed = [{**TRANSFORMER, "path": transformer}, POOLING, *([NORMALIZE] if normalize else [])]
    pooling = pooling or {"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True}
    prefix = f"{transformer}/" if transformer else ""
    named = {f"{prefix}{name}": value for name, value in files.items() if name != "config_sentence_transformers.json"}
    whole = {name: value for name, value in files.items() if name == "config_sentence_transformers.json"}
    return {
        "modules.json": listed,
        "1_Pooling/config.json": pooling,
        f"{prefix}tokenizer_config.json": AS_IT_IS,
        **named,
        **whole,
    }


def resolve(folder, **options):
    return resolve_encoder(str(folder), device="cpu", dtype="float32", **options)


def assert_equal_vectors(folder, texts=TEXTS, **prompts):
    """Passages and queries equal those of sentence-transformers, within 1e-3 of their length."""
    encoder = resolve(folder)
    reference = sentence_transformers.SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    options = {"batch_size": 1, "normalize_embeddings": encoder.identity.normalise}
    for ours_ND, theirs_ND in (
        (encoder.encode_passages(texts).vectors_ND, reference.encode(texts, **options, **prompts.get("passages", {}))),
        (encoder.encode_queries(texts), reference.encode(texts, **options, **prompts.get("queries", {}))),
    ):
        errors_N = np.linalg.norm(ours_ND.astype(np.float64) - theirs_ND, axis=1)
        assert (errors_N <= 1e-3 * np.linalg.norm(theirs_ND, axis=1)).all()
    return encoder


@pytest.mark.parametrize("kind", MODELS)
def test_vectors_of_every_model_equal_those_of_sentence_transformers(make_model, kind):
    folder = make_model(kind, **modules(**{"sentence_bert_config.json": {"max_seq_length": 20}}))
    encoder = assert_equal_vectors(folder)
    assert encoder.identity.max_length == 20


@pytest.mark.parametrize(
    "pooling",
    [
        {"word_embedding_dimension": 32, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False},
        {"word_embedding_dimension": 32, "pooling_mode_max_tokens": True},
        {"embedding_dimension": 32, "pooling_mode": "mean_sqrt_len_tokens", "include_prompt": True},
        {"embedding_dimension": 32, "pooling_mode": ["cls"]},
        {"embedding_dimension": 32},
        {"word_embedding_dimension": 32, "pooling_mode_mean_tokens": False, "pooling_mode_cls_token": False},
    ],
)
@pytest.mark.parametrize("normalize", [False, True])
def test_poolings_equal_those_of_sentence_transformers(make_model, pooling, normalize):
    assert_equal_vectors(make_model(**modules(pooling, normalize=normalize)))


@pytest.mark.parametrize(
    "config",
    [
        {"max_seq_length": 7},
        {"max_seq_length": 7, "do_lower_case": True},
        {"max_seq_length": None, "do_lower_case": False},
        {"tokenizer_args": {"model_max_length": 9}, "model_args": {"attn_implementation": "eager"}},
        {
            "transformer_task": "feature-extraction",
            "modality_config": {"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
            "module_output_name": "token_embeddings",
            "unpad_inputs": None,
        },
    ],
)
def test_settings_of_the_transformer_take_effect(make_model, config):
    assert_equal_vectors(make_model(**modules(**{"sentence_bert_config.json": config})))


def test_lower_case_changes_a_cased_tokenizer_and_its_identity(make_model):
    folders = [make_model(**modules(**{"sentence_bert_config.json": {"do_lower_case": on}})) for on in (False, True)]
    for folder in folders:
        tokenizer = json.loads((folder / "tokenizer.json").read_text())
        tokenizer["normalizer"]["lowercase"] = False
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    cased, uncased = (assert_equal_vectors(folder) for folder in folders)
    texts = ["the cat sat", "THE CAT SAT"]
    assert len(np.unique(uncased.encode_passages(texts).vectors_ND, axis=0)) == 1
    assert len(np.unique(cased.encode_passages(texts).vectors_ND, axis=0)) == 2
    assert "tokenizer" in {difference.split(":")[0] for difference in cased.identity.difference(uncased.identity)}


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("similarity", [None, "cosine", "dot", "euclidean"])
@pytest.mark.parametrize("truncate_dim", [None, 8, 32, 100])
def test_similarity_and_truncation_take_effect(make_model, normalize, similarity, truncate_dim):
    config = {"similarity_fn_name": similarity, "truncate_dim": truncate_dim}
    folder = make_model(**modules(normalize=normalize, **{"config_sentence_transformers.json": config}))
    if normalize and truncate_dim and similarity in ("dot", "euclidean"):
        with pytest.raises(InputError, match=r"truncate_dim.*Give 'retrodb embed --normalise'"):
            resolve(folder)
        assert resolve(folder, overrides=Overrides(normalise=True)).identity.normalise
        return
    identity = assert_equal_vectors(folder).identity
    assert identity.dimension == min(truncate_dim or 32, 32)
    metric = {None: "inner_product" if normalize else "squared_l2", "euclidean": "squared_l2"}
    assert identity.metric == metric.get(similarity, "inner_product")


def test_prompts_are_those_of_sentence_transformers(make_model):
    prompts = {"query": "the ", "document": "a ", "passage": "mat "}
    folder = make_model(**modules(**{"config_sentence_transformers.json": {"prompts": prompts}}))
    encoder = assert_equal_vectors(folder, passages={"prompt_name": "document"}, queries={"prompt_name": "query"})
    reference = sentence_transformers.SentenceTransformer(str(folder), device="cpu")
    theirs_ND = reference.encode_document(["cat"])
    np.testing.assert_allclose(encoder.encode_passages(["cat"]).vectors_ND, theirs_ND, rtol=1e-2, atol=1e-3)
    default = {"prompts": {"own": "cat "}, "default_prompt_name": "own"}
    assert_equal_vectors(make_model(**modules(**{"config_sentence_transformers.json": default})))


def test_old_layout_with_a_folder_of_the_transformer(make_model):
    folder = make_model()
    (folder / "0_Transformer").mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (folder / name).rename(folder / "0_Transformer" / name)
    files = modules(transformer="0_Transformer", **{"sentence_roberta_config.json": {"max_seq_length": 6}})
    for name, value in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(value))
    assert assert_equal_vectors(folder).identity.max_length == 6


# Refusals: each names the setting and the file


def module(kind, path="2_Other"):
    return {"idx": 2, "name": "2", "path": path, "type": f"sentence_transformers.models.{kind}"}


@pytest.mark.parametrize(
    ("file", "value", "message"),
    [
        *(
            ("modules.json", [TRANSFORMER, POOLING, module(kind)], kind)
            for kind in ("Dense", "LayerNorm", "CNN", "LSTM", "WordWeights", "StaticEmbedding", "Router", "Asym")
        ),
        ("modules.json", [module("WordEmbeddings", ""), POOLING], "WordEmbeddings"),
        ("modules.json", [module("BoW", "")], "BoW"),
        ("modules.json", [{**TRANSFORMER, "type": "custom_st.Transformer"}, POOLING], r"custom_st\.Transformer.* code"),
        ("modules.json", [{**TRANSFORMER, "path": "../other"}, POOLING], r"path of a module is '\.\./other'"),
        ("modules.json", [{**TRANSFORMER, "device": "x"}, POOLING], "module setting 'device'"),
        ("modules.json", [TRANSFORMER, NORMALIZE, POOLING], "the modules are Transformer, Normalize, Pooling"),
        ("modules.json", [TRANSFORMER], "the modules are Transformer,"),
        ("modules.json", {}, "not a list of modules"),
        ("modules.json", [3], "not a list of modules"),
        ("1_Pooling/config.json", {"pooling_mode": "weightedmean"}, "weightedmean"),
        ("1_Pooling/config.json", {"pooling_mode": "mean", "layers": 2}, "setting 'layers'"),
        ("1_Pooling/config.json", {"pooling_mode": "mean", "embedding_dimension": "x"}, "embedding dimension"),
        ("1_Pooling/config.json", {"pooling_mode": "mean", "embedding_dimension": 7}, "expects 7 dimensions"),
        ("2_Normalize/config.json", {"module_input_name": "token_embeddings"}, "module_input_name"),
        ("2_Normalize/config.json", {"p": 1}, "setting 'p'"),
        ("sentence_bert_config.json", {"max_seq_length": "long"}, "max_seq_length.*'long'"),
        ("sentence_bert_config.json", {"max_seq_length": 0}, "max_seq_length"),
        ("sentence_bert_config.json", {"do_lower_case": "yes"}, "do_lower_case"),
        ("sentence_bert_config.json", {"transformer_task": "fill-mask"}, "transformer_task"),
        ("sentence_bert_config.json", {"modality_config": {"image": {}}}, "modality_config"),
        ("sentence_bert_config.json", {"query_length": 32}, "query_length"),
        ("sentence_bert_config.json", {"model_args": {"add_pooling_layer": False}}, "model_args 'add_pooling_layer'"),
        ("sentence_bert_config.json", {"tokenizer_args": {"use_slow": 1}}, "tokenizer_args 'use_slow'"),
        ("sentence_bert_config.json", {"pad_to": 8}, "setting 'pad_to'"),
        ("config_sentence_transformers.json", {"similarity_fn_name": "manhattan"}, r"Manhattan.*--metric squared_l2"),
        ("config_sentence_transformers.json", {"similarity_fn_name": "maxsim"}, "maxsim"),
        ("config_sentence_transformers.json", {"similarity_fn_name": 3}, "similarity_fn_name"),
        ("config_sentence_transformers.json", {"truncate_dim": -1}, "truncate_dim"),
        ("config_sentence_transformers.json", {"truncate_dim": True}, "truncate_dim"),
        ("config_sentence_transformers.json", {"model_type": "SparseEncoder"}, "SparseEncoder"),
        ("config_sentence_transformers.json", {"model_type": "CrossEncoder"}, "CrossEncoder"),
        ("config_sentence_transformers.json", {"prompts": ["a"]}, "prompts"),
        ("config_sentence_transformers.json", {"prompts": {"a": 1}}, "prompts"),
        ("config_sentence_transformers.json", {"default_prompt_name": "none"}, "default_prompt_name.*'none'"),
        ("config_sentence_transformers.json", {"backend": "onnx"}, "setting 'backend'"),
        ("config.json", {"model_type": "bert", "quantization_config": {"bits": 4}}, "quantization_config"),
    ],
)
def test_setting_that_cannot_take_effect_is_refused_by_name(make_model, file, value, message):
    folder = make_model(**{**modules(normalize=True), file: value})
    with pytest.raises(RetroDBError, match=message) as caught:
        resolve(folder)
    assert str(folder) in str(caught.value)
    with pytest.raises(RetroDBError, match=message):
        check_encoder(EmbedParams(str(folder)))


def test_manhattan_may_be_replaced(make_model):
    folder = make_model(**modules(**{"config_sentence_transformers.json": {"similarity_fn_name": "manhattan"}}))
    assert read_conventions(folder, Overrides(metric="squared_l2")).metric == "squared_l2"


# Damaged folders

JSON_FILES = (
    "config.json",
    "modules.json",
    "1_Pooling/config.json",
    "config_sentence_transformers.json",
    "sentence_bert_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
)
WHOLE = modules(
    normalize=True,
    **{
        "config_sentence_transformers.json": {"prompts": {"query": "q "}, "similarity_fn_name": "cosine"},
        "sentence_bert_config.json": {"max_seq_length": 12, "do_lower_case": True},
    },
)


@pytest.mark.parametrize("file", JSON_FILES)
@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe{", b"[[" * 5_000, b"null", b"3", b'"x"'])
def test_broken_json_is_refused_with_its_file(make_model, file, content):
    folder = make_model(**WHOLE)
    (folder / file).write_bytes(content)
    with pytest.raises(RetroDBError) as caught:
        resolve(folder)
    assert str(folder / file) in str(caught.value) or (file == "tokenizer.json" and str(folder) in str(caught.value))


@pytest.mark.parametrize("kind", ["bert", "electra"])
@pytest.mark.parametrize("size", [0, 4, 100, -10])
def test_truncated_weights_are_refused_with_their_file(make_model, kind, size):
    folder = make_model(kind)
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[:size])
    with pytest.raises(InputError, match=r"model\.safetensors: the weights cannot be read"):
        resolve(folder)


def test_missing_tensor_of_a_model_of_transformers_is_refused(make_model):
    folder = make_model("electra")
    weights = load_file(folder / "model.safetensors")
    del weights["encoder.layer.1.output.dense.bias"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"no tensor 'encoder\.layer\.1\.output\.dense\.bias'.*'electra'"):
        resolve(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"hidden_size": 64},
        {"num_attention_heads": 5},
        {"num_attention_heads": 0},
        {"hidden_act": "none"},
        {"num_hidden_layers": "two"},
        {"model_type": "no-such-type"},
        {"model_type": ["bert"]},
        {"layer_norm_eps": "small"},
    ],
)
def test_settings_that_do_not_match_the_weights_are_refused(make_model, change):
    folder = make_model("bert")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(RetroDBError) as caught:
        resolve(folder)
    assert str(folder) in str(caught.value)


def _refuses_or_encodes(folder: Path, originals: dict[str, bytes], seed: int) -> None:
    rng = random.Random(seed)
    file = rng.choice(list(originals))
    value = json.loads(originals[file])
    node, key = value, rng.choice(list(value) if isinstance(value, dict) else range(len(value)))
    while isinstance(node[key], dict | list) and node[key] and rng.random() < 0.6:
        node = node[key]
        key = rng.choice(list(node)) if isinstance(node, dict) else rng.randrange(len(node))
    if rng.random() < 0.3:
        del node[key]
    else:
        node[key] = rng.choice([None, 0, -1, 10**12, 1.5, "", "x", "../x", [], {}, [[]], {"type": "x"}, True, False])
    (folder / file).write_text(json.dumps(value))
    try:
        vectors_ND = resolve(folder).encode_passages(["the cat", ""]).vectors_ND
    except RetroDBError as error:
        message = str(error)
    else:
        assert np.isfinite(vectors_ND).all()
        message = str(folder)
    finally:
        (folder / file).write_bytes(originals[file])
    assert message


@pytest.fixture
def whole_folder(make_model):
    folder = make_model(**WHOLE)
    return folder, {file: (folder / file).read_bytes() for file in JSON_FILES}


def test_changed_file_is_refused_or_works(whole_folder):
    for seed in range(60):
        _refuses_or_encodes(*whole_folder, seed)


@pytest.mark.soak
def test_many_changed_files_are_refused_or_work(whole_folder):
    for seed in range(10_000):
        _refuses_or_encodes(*whole_folder, seed)


# float16


def test_values_beyond_float16_name_the_storage_and_a_remedy_that_works(make_model):
    folder = make_model("bert")
    weights = load_file(folder / "model.safetensors")
    weights["encoder.layer.1.output.LayerNorm.weight"] *= 1e6
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(NotFiniteError, match=r"largest number of float16, in which vectors are stored.*--normalise"):
        resolve(folder).encode_passages(["the", "mat"])
    vectors_ND = resolve(folder, overrides=Overrides(normalise=True)).encode_passages(["the", "mat"]).vectors_ND
    np.testing.assert_allclose(np.linalg.norm(vectors_ND.astype(np.float32), axis=1), 1, atol=1e-3)
