"""The lean encoder computes what transformers computes."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
import transformers

from retrodb.encode.bert import BertConfig, LeanBert, random_weights, read_weights
from retrodb.encode.pipeline import pool
from retrodb.encode.resolve import resolve_encoder

LEAN = ["bert", "bert-masked-lm", "distilbert", "roberta", "xlm-roberta"]


def cosine(left_ND, right_ND):
    left_ND, right_ND = (np.asarray(x, np.float64) for x in (left_ND, right_ND))
    return (left_ND * right_ND).sum(1) / np.linalg.norm(left_ND, axis=1) / np.linalg.norm(right_ND, axis=1)


def load(folder) -> LeanBert:
    config = BertConfig.from_json(json.loads((folder / "config.json").read_text()))
    assert config is not None
    return LeanBert(config, read_weights([folder / "model.safetensors"]), device="cpu", dtype=torch.float32)


@pytest.mark.parametrize("kind", LEAN)
def test_hidden_states_equal_those_of_transformers(make_model, kind):
    folder = make_model(kind)
    reference = transformers.AutoModel.from_pretrained(folder).eval()
    ids_BL = torch.randint(5, 80, (7, 19), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = reference(input_ids=ids_BL, attention_mask=torch.ones_like(ids_BL)).last_hidden_state
        hidden = load(folder)(ids_BL)
    torch.testing.assert_close(hidden, expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", [*LEAN, "electra"])
def test_vectors_of_texts_equal_masked_means_of_transformers(make_model, kind):
    folder = make_model(kind)
    texts = ["the cat sat", "a mat.", "", "sitting on the mat", "b c d e f g"]
    encoder = resolve_encoder(str(folder), device="cpu", dtype="float32")
    assert encoder.provenance.implementation == ("transformers" if kind == "electra" else "lean")
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), pad_token="[PAD]")
    inputs = tokenizer(texts, padding=True, truncation=False, return_tensors="pt", return_token_type_ids=False)
    with torch.inference_mode():
        hidden = transformers.AutoModel.from_pretrained(folder).eval()(**inputs).last_hidden_state
    mask = inputs["attention_mask"][:, :, None]
    expected = (hidden * mask).sum(1) / mask.sum(1)
    batch = encoder.encode_passages(texts)
    assert cosine(batch.vectors_ND, expected).min() >= 0.9999
    assert encoder.num_flops(batch.num_tokens_N) > 0


def test_old_names_of_norms_and_prefixes_of_heads_are_understood(make_model):
    folder = make_model("bert")
    weights = read_weights([folder / "model.safetensors"])
    renamed = {
        f"ctx_encoder.bert_model.{name}".replace("Norm.weight", "Norm.gamma").replace("Norm.bias", "Norm.beta"): weight
        for name, weight in weights.items()
    }
    plain = load(folder)
    other = LeanBert(plain.config, renamed, device="cpu", dtype=torch.float32)
    ids_BL = torch.arange(5, 25).view(2, 10)
    assert torch.equal(plain(ids_BL), other(ids_BL))


@pytest.mark.parametrize(
    "change",
    [
        {"model_type": "modernbert"},
        {"hidden_act": "swish-of-its-own"},
        {"position_embedding_type": "relative_key"},
        {"is_decoder": True},
        {"projection_dim": 128},
        {"hidden_size": None},
    ],
)
def test_other_architectures_are_left_to_transformers(make_model, change):
    config = {**json.loads((make_model("bert") / "config.json").read_text()), **change}
    config = {name: value for name, value in config.items() if value is not None}
    assert BertConfig.from_json(config) is None


def test_dpr_towers_are_first_token_and_inner_product(make_model):
    folder = make_model("bert")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "dpr", "projection_dim": 0}))
    identity = resolve_encoder(str(folder), device="cpu").identity
    assert (identity.pooling, identity.metric, identity.normalise) == ("cls", "inner_product", False)


TEXTS = [
    "The key of a chunk is the frozen encoder's vector for its text.",
    "Nürnberg, 中文 and emoji 🙂 are texts, too.",
    "",
    "word " * 400,
    *(f"Sentence number {n} is {'very ' * n}long." for n in range(20)),
]


def test_real_minilm_equals_sentence_transformers(minilm):
    from sentence_transformers import SentenceTransformer

    encoder = resolve_encoder(str(minilm), device="cpu", dtype="float32")
    expected_ND = SentenceTransformer(str(minilm), device="cpu").encode(TEXTS)
    assert cosine(encoder.encode_passages(TEXTS).vectors_ND, expected_ND).min() >= 0.9999
    queries_QD = encoder.encode_queries(TEXTS[:3])
    assert queries_QD.dtype == np.float32
    assert cosine(queries_QD, expected_ND[:3]).min() >= 0.9999


def test_bfloat16_of_minilm_is_near_float32(minilm):
    vectors = [
        resolve_encoder(str(minilm), device="cpu", dtype=t).encode_passages(TEXTS[:8]) for t in ("float32", "bfloat16")
    ]
    assert cosine(*(batch.vectors_ND for batch in vectors)).min() >= 0.9995


def test_operations_of_bert_base_are_those_of_the_paper():
    base = BertConfig(num_layers=12, num_heads=12, hidden=768, intermediate=3072)
    assert base.num_flops(67) / 67 == pytest.approx(172.4e6, rel=1e-3)


def test_random_weights_make_a_model():
    config = BertConfig(num_layers=1, num_heads=2, hidden=16, intermediate=32)
    model = LeanBert(
        config, random_weights(config, vocab_size=50, num_positions=12, seed=1), device="cpu", dtype=torch.float32
    )
    assert (model.num_embeddings, model.max_length) == (50, 12)
    assert torch.isfinite(model(torch.arange(10)[None])).all()


@pytest.mark.parametrize("mode", ["mean", "cls", "max", "mean_sqrt_len"])
def test_pooling_equals_its_definition(mode):
    hidden_BLD = torch.randn(3, 6, 4)
    inner = hidden_BLD[:, 1:5]
    expected = {
        "mean": inner.mean(1),
        "cls": hidden_BLD[:, 0],
        "max": inner.max(1).values,
        "mean_sqrt_len": inner.sum(1) / 4**0.5,
    }[mode]
    torch.testing.assert_close(pool(hidden_BLD, mode, leading=1, trailing=1), expected)


def test_lean_modules_need_torch_and_numpy_only():
    code = (
        "import sys, retrodb.encode.bert, retrodb.encode.batching, retrodb.encode.device, retrodb.encode.pipeline;"
        "print([m for m in ('transformers', 'tokenizers', 'pyarrow', 'numba', 'safetensors') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
