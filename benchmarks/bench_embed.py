"""Embedding on a CPU: retrodb, sentence-transformers and transformers on the same chunks in the same run.

    python benchmarks/bench_embed.py --corpus wikipedia-en.jsonl.zst --chunks 512 --threads 1

Measures chunks per second (the best of several interleaved rounds, because other jobs slow all of them down; of CPU time with one
thread, of elapsed time with more), the fraction of the matrix rate measured in the same rounds, agreement of vectors and of
nearest neighbours, and tokenization alone. The figures are one JSON object. Without --corpus the texts are the docstrings of the
standard library. With --runtimes OpenVINO and ONNX Runtime also run the same model in the same batches of equal lengths
(pip install openvino onnxruntime onnx onnxscript).
"""

from __future__ import annotations

import argparse
import ast
import io
import json
import os
import platform
import resource
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from retrodb.encode.threads import thread_environment

os.environ.update(thread_environment())  # before torch is imported

import numpy as np
import torch

from retrodb.encode.batching import plan_batches
from retrodb.encode.chunk_tokenizer import ChunkTokenizer, TokenizerSpec
from retrodb.encode.device import choose_compute, measure_matrix_rate
from retrodb.encode.model_folder import MINILM, find_model, read_tokenizer
from retrodb.encode.resolve import resolve_encoder

CHUNK_CHARS = 300  # of English text in 64 tokens of a byte-level BPE, about


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, help="JSON Lines with a field 'text', plain or .zst")
    parser.add_argument("--model", default=MINILM)
    parser.add_argument("--chunks", type=int, default=512)
    parser.add_argument("--tokenize-chunks", type=int, default=16_384)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--runtimes", action="store_true", help="also OpenVINO and ONNX Runtime, in float32")
    parser.add_argument("--out", type=Path, help="also write the JSON to this file")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    texts = read_chunks(options.corpus, max(options.chunks, 2 * options.tokenize_chunks))
    folder, origin = find_model(options.model)
    result: dict[str, Any] = {
        "environment": environment(options, origin),
        "embedding": bench_embedding(folder, spread(texts, options.chunks), options),
        "tokenization": bench_tokenization(folder, texts, options.tokenize_chunks),
    }
    result["peak_memory_mb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    text = json.dumps(result, indent=2)
    print(text)
    if options.out:
        options.out.write_text(text + "\n")


def environment(options: argparse.Namespace, origin: str) -> dict[str, Any]:
    names = ["torch", "transformers", "sentence-transformers", "tokenizers", "numpy"]
    names += ["openvino", "onnxruntime"] if options.runtimes else []
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    return {
        "cpu": next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.processor()),
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {name: metadata.version(name) for name in names},
        "options": {name: str(value) for name, value in vars(options).items()},
        "model_origin": origin,
    }


def read_chunks(corpus: Path | None, count: int) -> list[str]:
    """The first `count` pieces of documents, cut every 300 characters."""
    chunks: list[str] = []
    for text in documents(corpus):
        chunks += [text[start : start + CHUNK_CHARS] for start in range(0, len(text), CHUNK_CHARS)]
        if len(chunks) >= count:
            break
    return chunks[:count]


def documents(corpus: Path | None) -> Iterator[str]:
    if corpus is None:
        for file in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
            nodes = ast.walk(ast.parse(file.read_text(encoding="utf-8")))
            kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
            yield from (doc for node in nodes if isinstance(node, kinds) and (doc := ast.get_docstring(node)))
        return
    with corpus.open("rb") as raw:
        if corpus.suffix == ".zst":
            import zstandard

            lines: Any = io.BufferedReader(zstandard.ZstdDecompressor().stream_reader(raw))
        else:
            lines = raw
        yield from (json.loads(line)["text"] for line in lines)


def spread(texts: list[str], count: int) -> list[str]:
    """`count` of the texts, evenly spread, because adjacent texts of a document are similar."""
    return texts[:: max(1, len(texts) // count)][:count]


def bench_embedding(folder: Path, texts: list[str], options: argparse.Namespace) -> dict[str, Any]:
    ours = resolve_encoder(str(folder), device="cpu", dtype="float32", threads=options.threads)
    ours_bf16 = resolve_encoder(str(folder), device="cpu", dtype="bfloat16", threads=options.threads)
    backends: dict[str, Callable[[list[str]], Any]] = {
        "retrodb fp32": lambda batch: ours.encode_passages(batch).vectors_ND,
        "sentence-transformers fp32 (its default)": sentence_transformers(folder),
        "transformers fp32, length-sorted batches of 32": transformers_sorted(folder),
    }
    if options.runtimes:
        backends["OpenVINO fp32, exact lengths"] = exact_lengths(folder, openvino_model(folder, options.threads))
        backends["ONNX Runtime fp32, exact lengths"] = exact_lengths(folder, onnx_model(folder, options.threads))
    compute = choose_compute("cpu", "float32", threads=options.threads)
    seconds = dict.fromkeys(backends, float("inf"))
    rate, vectors = 0.0, {}
    for backend in backends.values():
        backend(texts[:32])
    clock = time.process_time if options.threads == 1 else time.perf_counter
    for _ in range(options.rounds):
        for name, backend in backends.items():
            start = clock()
            vectors[name] = np.asarray(backend(texts), np.float32)
            seconds[name] = min(seconds[name], clock() - start)
        rate = max(rate, measure_matrix_rate(compute))
    flops = ours.num_flops(ours.encode_passages(texts).num_tokens_N)
    first, *peers = backends
    vectors["retrodb bf16"] = ours_bf16.encode_passages(texts).vectors_ND.astype(np.float32)
    reference_ND = vectors["transformers fp32, length-sorted batches of 32"]
    return {
        "chunks_per_s": {name: round(len(texts) / best, 1) for name, best in seconds.items()},
        "ratio": {f"retrodb / {name}": round(seconds[name] / seconds[first], 2) for name in peers},
        "gflops": round(flops / seconds[first] / 1e9, 1),
        "matrix_gflops": round(rate / 1e9, 1),
        "fraction_of_matrix_rate": round(flops / seconds[first] / rate, 2),
        "cosine_min": {name: round(float(cosines(v_ND, reference_ND).min()), 6) for name, v_ND in vectors.items()},
        "neighbour_agreement_at_10": {name: agreement(v_ND, reference_ND) for name, v_ND in vectors.items()},
    }


def sentence_transformers(folder: Path) -> Callable[[list[str]], Any]:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder), device="cpu")
    return lambda texts: model.encode(texts, show_progress_bar=False)


def transformers_sorted(folder: Path) -> Callable[[list[str]], Any]:
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder).eval()

    @torch.inference_mode()
    def encode(texts: list[str]) -> Any:
        order = sorted(range(len(texts)), key=lambda row: len(texts[row]))
        vectors_ND = torch.empty(len(texts), model.config.hidden_size)
        for rows in (order[start : start + 32] for start in range(0, len(order), 32)):
            batch = [texts[row] for row in rows]
            inputs = tokenizer(batch, padding="longest", truncation=True, max_length=256, return_tensors="pt")
            mask_BL1 = inputs["attention_mask"][:, :, None]
            hidden_BLD = model(**inputs).last_hidden_state
            vectors_ND[rows] = torch.nn.functional.normalize((hidden_BLD * mask_BL1).sum(1) / mask_BL1.sum(1), dim=1)
        return vectors_ND

    return encode


def exact_lengths(folder: Path, model: Callable[[Any], Any]) -> Callable[[list[str]], Any]:
    """Batches of one length each, as our encoder plans them, through a model that gives hidden states for ids."""
    tokenizer = ChunkTokenizer(TokenizerSpec(read_tokenizer(folder), 512))

    def encode(texts: list[str]) -> Any:
        tokens = tokenizer.encode(texts)
        plan = plan_batches(tokens.lengths_N, batch_tokens=2_048)
        vectors_ND: Any = None
        for batch in plan.batches:
            rows = plan.order_N[batch.start : batch.stop]
            ids_BL = tokens.ids[tokens.offsets[rows, None] + np.arange(batch.length)].astype(np.int64)
            mean_BD = model(ids_BL).mean(axis=1)
            vectors_ND = np.empty((len(texts), mean_BD.shape[1]), np.float32) if vectors_ND is None else vectors_ND
            vectors_ND[rows] = mean_BD / np.linalg.norm(mean_BD, axis=1, keepdims=True)
        return vectors_ND

    return encode


def plain_model(folder: Path) -> Any:
    """The transformers model as a module from ids (B, L) int64 to hidden states, for other runtimes to convert."""
    from transformers import AutoModel

    class Plain(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = AutoModel.from_pretrained(folder, attn_implementation="eager").eval()

        def forward(self, ids_BL: torch.Tensor) -> torch.Tensor:
            return self.model(input_ids=ids_BL, attention_mask=torch.ones_like(ids_BL)).last_hidden_state

    return Plain().eval()


def openvino_model(folder: Path, threads: int) -> Callable[[Any], Any]:
    import openvino as ov

    converted = ov.convert_model(plain_model(folder), example_input=torch.ones(2, 16, dtype=torch.int64))
    settings = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "THROUGHPUT"}
    compiled = ov.Core().compile_model(converted, "CPU", settings)
    return lambda ids_BL: compiled([ids_BL])[0]


def onnx_model(folder: Path, threads: int) -> Callable[[Any], Any]:
    import onnxruntime

    shapes = {"ids_BL": {0: torch.export.Dim("B", min=1, max=4096), 1: torch.export.Dim("L", min=2, max=512)}}
    with tempfile.TemporaryDirectory() as temporary:
        path = str(Path(temporary) / "model.onnx")
        example = (torch.ones(2, 16, dtype=torch.int64),)
        torch.onnx.export(plain_model(folder), example, path, dynamo=True, dynamic_shapes=shapes, verbose=False)
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(path, settings, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda ids_BL: session.run(None, {name: ids_BL})[0]


def cosines(left_ND: Any, right_ND: Any) -> Any:
    dots_N = np.einsum("nd,nd->n", left_ND, right_ND)
    return dots_N / np.linalg.norm(left_ND, axis=1) / np.linalg.norm(right_ND, axis=1)


def agreement(vectors_ND: Any, reference_ND: Any, k: int = 10) -> float:
    """The mean fraction of the k nearest rows, the row itself excluded, that two sets of vectors have in common."""

    def nearest(rows_ND: Any) -> Any:
        scores_NN = rows_ND @ rows_ND.T
        np.fill_diagonal(scores_NN, -np.inf)
        return np.argsort(-scores_NN, axis=1, kind="stable")[:, :k]

    pairs = zip(nearest(vectors_ND), nearest(reference_ND), strict=True)
    return round(float(np.mean([len(np.intersect1d(ours_K, theirs_K)) / k for ours_K, theirs_K in pairs])), 4)


def bench_tokenization(folder: Path, texts: list[str], count: int) -> dict[str, Any]:
    """MB of text per second of CPU time: two halves with a cold cache, one again with a warm one, and the tokenizer alone."""
    ours = ChunkTokenizer(TokenizerSpec(read_tokenizer(folder), 512))
    first, second = texts[:count], texts[count : 2 * count]
    expected = ours.tokenizer.encode_batch_fast(second)
    rates = {
        "empty cache": cpu_rate(first, ours.encode),
        "next window of the corpus": cpu_rate(second, ours.encode),
        "warm": max(cpu_rate(second, ours.encode) for _ in range(3)),
        "encode_batch_fast": max(cpu_rate(second, ours.tokenizer.encode_batch_fast) for _ in range(3)),
    }
    encoded = ours.encode(second)
    whole = [e.ids for e in expected if len(e.ids) <= 512]
    is_whole = encoded.lengths_N < 512
    ids = [encoded.ids[a:b].tolist() for a, b in zip(encoded.offsets[:-1], encoded.offsets[1:], strict=True)]
    return {
        "mb_per_cpu_s": {name: round(rate, 2) for name, rate in rates.items()},
        "ratio_warm": round(rates["warm"] / rates["encode_batch_fast"], 2),
        "ratio_next_window": round(rates["next window of the corpus"] / rates["encode_batch_fast"], 2),
        "chunks": len(second),
        "cached_runs": len(ours.cache),
        "identical": [row for row, whole_row in zip(ids, is_whole, strict=True) if whole_row]
        == [row for row in whole if len(row) < 512],
    }


def cpu_rate(texts: list[str], tokenize: Callable[[list[str]], Any]) -> float:
    start = time.process_time()
    tokenize(texts)
    return sum(len(text.encode()) for text in texts) / 1e6 / (time.process_time() - start)


if __name__ == "__main__":
    main()
