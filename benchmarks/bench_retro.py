"""Training speed of the bundled RETRO model: tokens per second with and without neighbours, by size.

The tokens are random, from vocabularies of 8,000 and 50,257 tokens, because the content does not change the cost of a step. The
fused softmax loss is compared with PyTorch's own cross-entropy in the same run: it exists to be faster on a CPU.

    python benchmarks/bench_retro.py                      # about three minutes on two cores
    python benchmarks/bench_retro.py --sizes 20m,170m --device cuda
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch.nn import functional as F

from retrodb.bench.machine import environment
from retrodb.encode.device import choose_compute
from retrodb.retro.data import RetroData
from retrodb.retro.model import RetroModel, SoftmaxLoss
from retrodb.retro.model_config import config_of_size
from retrodb.retro.training import schedule_by_steps, train_model

SEED = 0


def random_data(chunks: int, vocab_size: int, m: int = 64, k: int = 2) -> RetroData:
    """Documents of 16 full chunks, each chunk with k random neighbours."""
    rng = np.random.default_rng(SEED)
    tokens = rng.integers(vocab_size, size=(chunks, m)).astype(np.uint16)
    rows = np.arange(chunks)
    return RetroData(
        tokens=tokens,
        lengths=np.full(chunks, m),
        continuations=np.where(rows % 16 == 15, -1, rows + 1),
        query_tokens=tokens,
        query_lengths=np.full(chunks, m),
        query_bytes=np.full(chunks, 4 * m),
        query_documents=rows // 16,
        neighbours=rng.integers(chunks, size=(chunks, k)),
        vocab_size=vocab_size,
    )


def training_rate(size: str, data: RetroData, batch_chunks: int, steps: int, device: str) -> float:
    """Tokens per second, without the first step."""
    model = RetroModel(replace(config_of_size(size, data.vocab_size), chunk_tokens=data.chunk_tokens, k=2, seed=SEED))
    ends: list[float] = []
    train_model(
        model,
        data,
        schedule_by_steps(steps + 1),
        batch_chunks=batch_chunks,
        device=device,
        on_step=lambda *_: ends.append(time.perf_counter()),
    )
    return steps * batch_chunks * data.chunk_tokens / (ends[-1] - ends[0])


def loss_rates(vocab_size: int, width: int, tokens: int, device: str) -> tuple[float, float]:
    """Tokens per second of the fused loss and of PyTorch's, forward and backward, the better of two runs."""
    h = torch.randn(tokens, width, device=device, requires_grad=True)
    embedding = torch.randn(vocab_size, width, device=device).mul_(width**-0.5).requires_grad_()
    bias = torch.zeros(vocab_size, device=device, requires_grad=True)
    targets = torch.randint(vocab_size, (tokens,), device=device)

    def fused() -> None:
        SoftmaxLoss.apply(h, embedding, bias, targets)[0].backward()

    def plain() -> None:
        F.cross_entropy(F.linear(h, embedding, bias), targets, reduction="sum").backward()

    def rate(function: Callable[[], None]) -> float:
        best = float("inf")
        for _ in range(2):
            start = time.perf_counter()
            function()
            if device.startswith("cuda"):
                torch.cuda.synchronize()
            best = min(best, time.perf_counter() - start)
        return tokens / best

    return rate(fused), rate(plain)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="tiny,2m,20m")
    parser.add_argument("--vocabularies", default="8000,50257")
    parser.add_argument("--batch-chunks", type=int, default=16)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    device = choose_compute(arguments.device).device
    for name, value in environment(torch.get_num_threads()).items():
        print(f"{name}: {value}")
    print(f"device: {device}; seed: {SEED}; chunks per step: {arguments.batch_chunks}; steps: {arguments.steps}\n")
    print("| size | vocabulary | tokens/s with neighbours | without | with / without |")
    print("|---|---|---|---|---|")
    for vocab_size in map(int, arguments.vocabularies.split(",")):
        data = random_data(512, vocab_size)
        for size in arguments.sizes.split(","):
            rates = [
                training_rate(size, variant, arguments.batch_chunks, arguments.steps, device)
                for variant in (data, data.without())
            ]
            print(
                f"| {size} | {vocab_size:,} | {rates[0]:,.0f} | {rates[1]:,.0f} | {rates[0] / rates[1]:.2f} |",
                flush=True,
            )
    print("\n| loss of 1,024 tokens, width 96, vocabulary | fused, tokens/s | PyTorch | ratio |")
    print("|---|---|---|---|")
    for vocab_size in map(int, arguments.vocabularies.split(",")):
        fused, plain = loss_rates(vocab_size, 96, 1024, device)
        print(f"| {vocab_size:,} | {fused:,.0f} | {plain:,.0f} | {fused / plain:.2f} |", flush=True)
    print(f"\npeak memory: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB")


if __name__ == "__main__":
    main()
