"""The neighbour join on a GPU. It needs only PyTorch 2.11 or newer and NumPy, no FAISS.

The vectors are synthetic unit vectors in topics, and the lists come from k-means on a sample. The k nearest of every vector are
found by the join's own scan (`gpu_scan`) and ordered by exact distances. It is compared on the same device with a brute-force
float16 product of a sample, which also gives the true neighbours, and with a query-major search of the same lists. Prints vectors
per second, the fraction of the measured int8 matrix rate, and the recall.

    PYTHONPATH=. python benchmarks/bench_neighbours_gpu.py                       # 10 M vectors, takes 14 GiB of GPU memory
    PYTHONPATH=. python benchmarks/bench_neighbours_gpu.py --rows 20000 --lists 64 --queries 5000 --truth 200 --device cpu
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from retrodb.ann.gpu_scan import ListColumns, scan_on_device

_BLOCK = 1 << 18


def mixture(rows: int, dim: int, noise: float, seed: int, device: str) -> torch.Tensor:
    """Unit float16 vectors: topics of about 250 rows."""
    random = torch.Generator(device).manual_seed(seed)
    topics = torch.randn(max(16, rows // 250), dim, generator=random, device=device)
    vectors = torch.empty(rows, dim, dtype=torch.float16, device=device)
    for start in range(0, rows, _BLOCK):
        block = vectors[start : start + _BLOCK]
        topic = torch.randint(len(topics), (len(block),), generator=random, device=device)
        steps = torch.randn(len(block), dim, generator=random, device=device)
        block.copy_(torch.nn.functional.normalize(topics[topic] + noise * steps, dim=1))
    return vectors


def wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def timed(work: Callable[[], Any], device: str) -> tuple[Any, float]:
    wait(device)
    start = time.perf_counter()
    result = work()
    wait(device)
    return result, time.perf_counter() - start


def int8_rate(device: str, size: int) -> float:
    """Operations per second of `torch._int_mm`, best of five."""
    a = torch.randint(-31, 32, (size, size), dtype=torch.int8, device=device)  # constants would be faster
    return max(2 * size**3 / timed(lambda: torch._int_mm(a, a.T), device)[1] for _ in range(5))


def trained(vectors: torch.Tensor, num_lists: int, iterations: int, random: torch.Generator) -> torch.Tensor:
    """Unit float16 centroids: k-means on 64 vectors per list. A list that gets no vector keeps its centroid."""
    rows = torch.randperm(len(vectors), generator=random)[: 64 * num_lists].to(vectors.device)
    sample, centroids = vectors[rows], vectors[rows[:num_lists]]
    for _ in range(iterations):
        nearest = torch.cat([(piece @ centroids.T).argmax(dim=1) for piece in sample.split(1 << 14)])
        sums = torch.zeros(centroids.shape, device=vectors.device).index_add_(0, nearest, sample.float())
        is_filled = torch.bincount(nearest, minlength=num_lists) > 0
        centroids = torch.where(is_filled[:, None], torch.nn.functional.normalize(sums, dim=1).half(), centroids)
    return centroids


def nearest_lists(vectors: torch.Tensor, centroids: torch.Tensor, count: int) -> torch.Tensor:
    """(N, count) int32 lists by inner product."""
    pieces = [(piece @ centroids.T).topk(count, dim=1).indices.int() for piece in vectors.split(1 << 14)]
    return torch.cat(pieces)


class Lists:
    """Vectors as int8 codes relative to a centre, sorted by list, in host memory as the memory-mapped store is."""

    def __init__(
        self, vectors: torch.Tensor, list_of_vector: torch.Tensor, num_lists: int, centre: torch.Tensor
    ) -> None:
        self.order = torch.argsort(list_of_vector, stable=True).cpu()
        sizes = torch.bincount(list_of_vector.long(), minlength=num_lists).cpu()
        self.offsets = torch.cat([torch.zeros(1, dtype=torch.int64), sizes.cumsum(0)]).tolist()
        scales = torch.cat([(piece.float() - centre).abs().amax(1) / 127 for piece in vectors.split(_BLOCK)])
        order = self.order.to(vectors.device)
        self.codes = np.empty(tuple(vectors.shape), dtype=np.int8)
        for start in range(0, len(order), _BLOCK):
            rows = order[start : start + _BLOCK]
            codes = torch.round((vectors[rows].float() - centre) / scales[rows, None]).to(torch.int8)
            self.codes[start : start + len(rows)] = codes.cpu().numpy()
        self.scales = scales[order].cpu().numpy()

    def columns(self, list_: int) -> ListColumns:
        """A list; without exclusion keys."""
        rows = slice(self.offsets[list_], self.offsets[list_ + 1])
        ids = self.order[rows].numpy()
        return ListColumns(self.codes[rows], self.scales[rows], ids, np.empty((0, len(ids)), np.int64))


def reranked(vectors: torch.Tensor, queries: torch.Tensor, ids: torch.Tensor, k: int) -> torch.Tensor:
    """The k nearest of candidates (Q, W) by float32 inner products."""
    nearest = []
    for block, candidates in zip(queries.split(4096), ids.split(4096), strict=True):
        scores = torch.einsum("qd,qwd->qw", block.float(), vectors[candidates.clamp(min=0)].float())
        best = scores.masked_fill(candidates < 0, -torch.inf).topk(k, dim=1).indices
        nearest.append(candidates.gather(1, best))
    return torch.cat(nearest)


def brute_force(vectors: torch.Tensor, queries: torch.Tensor, k: int) -> torch.Tensor:
    """The k nearest of all."""
    best = torch.full((len(queries), k), -torch.inf, device=vectors.device)
    ids = torch.full((len(queries), k), -1, dtype=torch.int64, device=vectors.device)
    for start in range(0, len(vectors), _BLOCK):
        scores, rows = (queries @ vectors[start : start + _BLOCK].T).float().topk(k, dim=1)
        best, columns = torch.cat([best, scores], 1).topk(k, dim=1)
        ids = torch.cat([ids, rows + start], 1).gather(1, columns)
    return ids


def query_major(
    vectors: torch.Tensor, queries: torch.Tensor, lists: torch.Tensor, store: Lists, k: int
) -> torch.Tensor:
    """The k nearest where one query after the other reads its lists, as in an inverted file."""
    order, nearest = store.order.to(vectors.device), []
    for query, probed in zip(queries, lists.tolist(), strict=True):
        rows = torch.cat([order[store.offsets[list_] : store.offsets[list_ + 1]] for list_ in probed])
        best = (vectors[rows] @ query).topk(min(k, len(rows))).indices
        nearest.append(torch.nn.functional.pad(rows[best], (0, k - len(best)), value=-1))
    return torch.stack(nearest)


def recall(ids: torch.Tensor, truth: torch.Tensor) -> float:
    """The fraction of the true neighbours that are among the ids (Q, k)."""
    return float((ids[:, :, None] == truth[:, None, :]).any(1).float().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--queries", type=int, default=1 << 20, help="queries of the block that is timed")
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument(
        "--noise", type=float, default=1.5, help="length of the noise in a vector, where the topic has length 1"
    )
    parser.add_argument("--lists", type=int, default=16_384)
    parser.add_argument("--iterations", type=int, default=10, help="iterations of k-means")
    parser.add_argument("--nprobe", type=int, nargs="+", default=[8, 16, 32])
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--rerank-margin", type=int, default=8)
    parser.add_argument("--truth", type=int, default=2_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    device, k = options.device, options.k
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else "cpu"
    print(json.dumps({"torch": torch.__version__, "hardware": name, **vars(options)}))
    vectors = mixture(options.rows, options.dim, options.noise, options.seed, device)
    random = torch.Generator().manual_seed(options.seed)
    centroids, train_s = timed(lambda: trained(vectors, options.lists, options.iterations, random), device)
    lists, assign_s = timed(lambda: nearest_lists(vectors, centroids, max(options.nprobe)), device)
    centre = centroids.float().mean(0)
    store = Lists(vectors, lists[:, 0], options.lists, centre)
    rows = store.order[: options.queries].to(device)  # a run in the order of lists, like the blocks of a whole join
    queries, own_lists = vectors[rows], lists[rows].cpu().numpy()
    sample = torch.randperm(len(rows), generator=random)[: options.truth].to(device)
    near, exact_s = timed(lambda: brute_force(vectors, queries[sample], k + options.rerank_margin), device)
    truth = reranked(vectors, queries[sample], near, k)  # the product's scores are rounded to float16
    rate = int8_rate(device, 8192 if device.startswith("cuda") else 512)
    print(
        f"training {train_s:.1f} s; "
        f"assignment {len(vectors) / assign_s:,.0f}/s; brute force {len(sample) / exact_s:,.0f}/s; int8 {rate / 1e12:.2f} TOP/s"
    )
    sizes, centre = np.diff(store.offsets), centre.cpu().numpy()
    least = own_lists[:200, : options.nprobe[0]]
    all_ids, no_interval = range(len(vectors)), np.empty((len(queries), 0, 2), np.int64)
    ids = [
        scan_on_device(
            queries[:200].float().cpu().numpy(),
            least,
            store.columns,
            [],
            no_interval[:200],
            centre,
            False,
            k,
            where,
            all_ids,
        )[0]
        for where in (device, "cpu")
    ]
    print(f"200 queries on this device and on the CPU: {(ids[0] == ids[1]).mean():.4%} of the ids are equal")
    print(f"{'nprobe':>6} {'recall':>7} {'joined/s':>12} {'of int8':>8} {'x brute':>8} {'x query-major':>14}")
    for nprobe in options.nprobe:
        probed = np.ascontiguousarray(own_lists[:, :nprobe])

        def join(probed: np.ndarray = probed) -> torch.Tensor:
            ids, _ = scan_on_device(
                queries.float().cpu().numpy(),
                probed,
                store.columns,
                [],
                no_interval,
                centre,
                False,
                k + options.rerank_margin,
                device,
                all_ids,
            )
            return reranked(vectors, queries, torch.from_numpy(ids).to(device), k)

        joined, join_s = timed(join, device)
        few = sample[:100]
        _, major_s = timed(
            lambda n=nprobe, f=few: query_major(vectors, queries[f], lists[rows[f], :n], store, k), device
        )
        speed = len(rows) / join_s
        fraction = 2 * sizes[probed].sum() * options.dim / join_s / rate
        ratios = f"{speed / (len(sample) / exact_s):8.1f} {speed / (len(few) / major_s):14.1f}"
        print(f"{nprobe:6} {recall(joined[sample], truth):7.3f} {speed:12,.0f} {fraction:8.3%} {ratios}", flush=True)
    if device.startswith("cuda"):
        print(f"peak GPU memory {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB")


if __name__ == "__main__":
    main()
