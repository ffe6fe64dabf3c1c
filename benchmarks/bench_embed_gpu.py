"""Embedding on an NVIDIA GPU. It needs only PyTorch 2.11 or newer, NumPy, and the modules of this repository.

    PYTHONPATH=. python benchmarks/bench_embed_gpu.py [--minilm FOLDER] [--windows 8] [--peer 1024 4096]

Measures the limits of the device (copy bandwidth, bfloat16 matrix product), then BERT-base and MiniLM from token ids on the
host to float16 vectors on the host: chunks, tokens and TFLOP per second, and the fraction of the matrix rate, eager and
compiled. Weights are random unless a MiniLM folder is given (needs safetensors), because the speed of a shape does not depend
on them. Lengths are drawn from the distribution of real 64-token chunks in WordPiece tokens. Vectors are compared with
float32, and those of a second run must have equal bytes. With --device cpu a small run checks the script itself.

--peer also measures sentence-transformers: its model from padded ids that are on the device already, with rows sorted by length,
after one pass over all of them, with and without cuDNN's attention.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from retrodb.encode.batching import plan_batches
from retrodb.encode.bert import BertConfig, LeanBert, random_weights, read_weights
from retrodb.encode.device import DTYPES, Compute, choose_compute, measure_matrix_rate
from retrodb.encode.pipeline import Pipeline, pool

SHAPES = {
    "BERT-base": BertConfig(num_layers=12, num_heads=12, hidden=768, intermediate=3072),
    "MiniLM-L6": BertConfig(num_layers=6, num_heads=12, hidden=384, intermediate=1536),
}
VOCAB, POSITIONS = 30_522, 512
# WordPiece tokens of English chunks of 64 GPT-2 tokens: quantile -> length, measured on Wikipedia; a thin tail is code-like text.
QUANTILES = {0.0: 40, 0.01: 58, 0.05: 61, 0.5: 67, 0.95: 74, 0.99: 78, 0.999: 120, 1.0: 456}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--window-rows", type=int, default=131_072)
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--batch-tokens", type=int, nargs="+", default=[32_768, 65_536, 131_072])
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument("--minilm", type=Path, help="folder of the real all-MiniLM-L6-v2")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--peer", type=int, nargs="*", default=[], help="rows of a batch of sentence-transformers")
    parser.add_argument("--peer-windows", type=int, default=2)
    parser.add_argument(
        "--peer-texts", action="store_true", help="also its `encode`, which tokenizes in the same process"
    )
    options = parser.parse_args()
    compute = choose_compute(options.device, "auto")
    rate = measure_matrix_rate(compute)
    result: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if compute.is_cuda else platform.processor() or "cpu",
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "options": {name: str(value) for name, value in vars(options).items()},
        "dtype": compute.dtype,
        "copy_gb_per_s": copy_rates(compute),
        "matrix_tflops": round(rate / 1e12, 3),
        "models": {},
    }
    for shape in options.shapes:
        result["models"][shape] = bench_shape(shape, compute, rate, options)
    print(json.dumps(result, indent=2))


def bench_shape(shape: str, compute: Compute, rate: float, options: argparse.Namespace) -> dict[str, Any]:
    config = SHAPES[shape]
    if shape == "MiniLM-L6" and options.minilm:
        weights = read_weights([options.minilm / "model.safetensors"])
    else:
        weights = random_weights(config, vocab_size=VOCAB, num_positions=POSITIONS, seed=0)
    model = LeanBert(config, weights, device=compute.device, dtype=DTYPES[compute.dtype])
    embed = embedder(model)
    windows = [make_window(options.window_rows, seed) for seed in range(options.windows)]
    measured: dict[str, Any] = {"check": check(embed, weights, config, compute, windows[0], options.batch_tokens[0])}
    if options.peer:
        measured |= bench_peer(shape, compute, windows[: options.peer_windows], options)
    modes = {"eager": embed}
    if not options.no_compile:
        modes["compiled"] = torch.compile(embed, dynamic=True)
    for mode, run in modes.items():
        for budget in options.batch_tokens:
            name = f"{mode}, {budget} tokens per batch"
            measured[name] = measure(run, config, windows, compute, budget, rate)
            print(shape, name, measured[name], file=sys.stderr, flush=True)
    return measured


def embedder(model: LeanBert) -> Callable[[Tensor], Tensor]:
    return lambda ids_BL: F.normalize(pool(model(ids_BL), "mean"), dim=1)


def make_window(num_rows: int, seed: int) -> tuple[Any, Any]:
    """Token ids (uint16, flat) and offsets of this many chunks."""
    rng = np.random.default_rng(seed)
    lengths_N = np.interp(rng.random(num_rows), list(QUANTILES), list(QUANTILES.values())).round().astype(np.int64)
    offsets = np.concatenate([[0], np.cumsum(lengths_N)])
    return rng.integers(1_000, VOCAB, offsets[-1], dtype=np.uint16), offsets


def measure(
    embed: Callable[[Tensor], Tensor],
    config: BertConfig,
    windows: list[tuple[Any, Any]],
    compute: Compute,
    budget: int,
    rate: float,
) -> dict[str, float]:
    """The rates for all windows through the pipeline, after one to warm up. Planning the batches is included."""
    pipeline = Pipeline(embed, config.hidden, compute)
    run(pipeline, windows[:1], budget)
    if compute.is_cuda:
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    run(pipeline, windows, budget)
    elapsed_s = time.perf_counter() - start
    lengths_N = np.concatenate([np.diff(offsets) for _, offsets in windows])
    flops = sum(
        config.num_flops(int(n)) * int(c) for n, c in zip(*np.unique(lengths_N, return_counts=True), strict=True)
    )
    return {
        "chunks_per_s": round(len(lengths_N) / elapsed_s, 1),
        "tokens_per_s": round(int(lengths_N.sum()) / elapsed_s),
        "tflops": round(flops / elapsed_s / 1e12, 3),
        "fraction_of_matrix_rate": round(flops / elapsed_s / rate, 3),
        "peak_memory_gb": round(torch.cuda.max_memory_allocated() / 1e9, 2) if compute.is_cuda else 0.0,
    }


def run(pipeline: Pipeline, windows: list[tuple[Any, Any]], budget: int) -> list[Any]:
    """The vectors of all windows. One window is computed while the next one is copied."""
    vectors, before = [], None
    for ids_T, offsets in windows:
        started = pipeline.start(ids_T, offsets, plan_batches(np.diff(offsets), batch_tokens=budget))
        if before is not None:
            vectors.append(pipeline.finish(before))
        before = started
    if before is not None:
        vectors.append(pipeline.finish(before))
    return vectors


def check(
    embed: Callable[[Tensor], Tensor],
    weights: dict[str, Tensor],
    config: BertConfig,
    compute: Compute,
    window: tuple[Any, Any],
    budget: int,
) -> dict[str, Any]:
    """Cosine of 2,048 rows to float32 on the same device, and whether a second run gives the same bytes."""
    offsets = window[1][:2_049]
    rows = window[0][: offsets[-1]], offsets
    exact = embedder(LeanBert(config, weights, device=compute.device, dtype=torch.float32))
    pipelines = [Pipeline(model, config.hidden, compute) for model in (embed, embed, exact)]
    first_ND, second_ND, exact_ND = (run(pipeline, [rows], budget)[0] for pipeline in pipelines)
    cosines_N = F.cosine_similarity(torch.from_numpy(first_ND).float(), torch.from_numpy(exact_ND).float())
    return {
        "cosine_to_float32_min": round(float(cosines_N.min()), 6),
        "same_bytes_again": first_ND.tobytes() == second_ND.tobytes(),
    }


def bench_peer(
    shape: str, compute: Compute, windows: list[tuple[Any, Any]], options: argparse.Namespace
) -> dict[str, dict[str, float]]:
    """Chunks per second of sentence-transformers with random weights, on rows of the same lengths."""
    import sentence_transformers
    import transformers

    config = SHAPES[shape]
    lengths_N = np.concatenate([np.diff(offsets) for _, offsets in windows])
    ids_T = np.concatenate([ids_T for ids_T, _ in windows]).astype(np.int64)
    starts_N = np.cumsum(lengths_N) - lengths_N
    order_N = np.argsort(-lengths_N, kind="stable")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{number}" for number in range(5, VOCAB))]
    with tempfile.TemporaryDirectory() as folder:
        transformers.BertModel(
            transformers.BertConfig(
                vocab_size=VOCAB,
                hidden_size=config.hidden,
                num_hidden_layers=config.num_layers,
                num_attention_heads=config.num_heads,
                intermediate_size=config.intermediate,
            )
        ).save_pretrained(folder)
        vocabulary = Path(folder, "vocab.txt")
        vocabulary.write_text("\n".join(words))
        transformers.BertTokenizerFast(str(vocabulary)).save_pretrained(folder)
        arguments = {"dtype": DTYPES[compute.dtype], "attn_implementation": "sdpa"}
        model = sentence_transformers.SentenceTransformer(folder, device=compute.device, model_kwargs=arguments)
    model.max_seq_length = POSITIONS
    measured = {}

    def note(name: str, work: Callable[[], Any], num_rows: int) -> None:
        if compute.is_cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        work()
        measured[name] = {
            "chunks_per_s": round(num_rows / (time.perf_counter() - start), 1),
            "peak_memory_gb": round(torch.cuda.max_memory_allocated() / 1e9, 2) if compute.is_cuda else 0.0,
        }
        print(shape, name, measured[name], file=sys.stderr, flush=True)

    version = sentence_transformers.__version__
    for size in options.peer:
        batches = []
        for start in range(0, len(order_N), size):
            rows = order_N[start : start + size]
            columns = np.arange(lengths_N[rows[0]])
            mask = columns < lengths_N[rows, None]
            ids = np.where(mask, ids_T[np.minimum(starts_N[rows, None] + columns, len(ids_T) - 1)], 0)
            features = {"input_ids": ids, "attention_mask": mask.astype(np.int64)}
            batches.append({name: torch.from_numpy(array).to(compute.device) for name, array in features.items()})

        @torch.inference_mode()
        def forward(batches: list[dict[str, Tensor]] = batches) -> Tensor:
            vectors = [model(dict(features))["sentence_embedding"] for features in batches]
            return F.normalize(torch.cat(vectors).float(), dim=1).half().cpu()

        for with_cudnn in (True, False) if compute.is_cuda else (False,):
            torch.backends.cuda.enable_cudnn_sdp(with_cudnn)
            forward()
            attention = "cuDNN's attention allowed" if with_cudnn else "without cuDNN's attention"
            note(f"sentence-transformers {version}, {size} rows per batch, {attention}", forward, len(order_N))
        torch.backends.cuda.enable_cudnn_sdp(True)
    if not options.peer_texts:
        return measured
    few = range(min(len(lengths_N), 131_072))
    texts = [" ".join(words[i] for i in ids_T[starts_N[row] + 1 : starts_N[row] + lengths_N[row] - 1]) for row in few]
    size = options.peer[-1]
    model.encode(texts[: 2 * size], batch_size=size)
    note(
        f"sentence-transformers {version}, {size} rows per batch, encode of texts",
        lambda: model.encode(texts, batch_size=size, normalize_embeddings=True),
        len(texts),
    )
    return measured


def copy_rates(compute: Compute, size: int = 1 << 28) -> dict[str, float]:
    """GB/s of copies of 256 MiB; a copy on the device reads and writes, so it counts twice."""
    host = torch.empty(size, dtype=torch.uint8, pin_memory=compute.is_cuda)
    device = torch.empty(size, dtype=torch.uint8, device=compute.device)
    pairs = {"to_device": (device, host, 1), "to_host": (host, device, 1), "on_device": (device, device.clone(), 2)}
    rates = {}
    for name, (target, source, factor) in pairs.items():
        best = float("inf")
        for _ in range(6):
            start = time.perf_counter()
            target.copy_(source, non_blocking=True)
            if compute.is_cuda:
                torch.cuda.synchronize()
            best = min(best, time.perf_counter() - start)
        rates[name] = round(factor * size / best / 1e9, 1)
    return rates


if __name__ == "__main__":
    main()
