"""FAISS scans the mapped lists of parts as it scans its own, and a search verifies those that it probes."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from pathlib import Path

import faiss
import numpy as np
import pytest
from flipped import flip_bit, forget_verified

from retrodb.ann.codebook import Codebook
from retrodb.ann.part import Part, build_part, open_part
from retrodb.ann.rerank import LivePart
from retrodb.ann.search import search
from retrodb.ann.training import train
from retrodb.errors import DamagedFileError
from retrodb.format.kinds import path_of
from retrodb.format.part_files import PART_FILES
from retrodb.store.publish import publish
from retrodb.store.storage import LocalStorage
from retrodb.store.verify import VerifiedFiles

RNG = np.random.default_rng(3)
SAMPLE = RNG.standard_normal((10_000, 16)).astype(np.float16)
VECTORS = SAMPLE[:1200]
FACTORIES = (
    "IVF8,Flat",
    "IVF8,SQ8",
    "IVF8,PQ4x4",
    "IVF8,RaBitQ",
    "IVF64,SQ8",
    "IVF8,PQ4x4fs",
    "IVF8,RaBitQfs",
    "IVF8_HNSW8,SQ8",
)


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("retrodb.format.blocks.BLOCK_BYTES", 128)


@cache
def trained(factory: str, metric: str = "inner_product") -> Codebook:
    return train(SAMPLE, factory, 0, metric)


def built(folder: Path, factory: str, rows: int = len(VECTORS)) -> tuple[Part, Codebook]:
    codebook = trained(factory)
    folder.mkdir()
    build_part(VECTORS[:rows], codebook, folder)
    return open_part(folder), codebook


@pytest.mark.parametrize("metric", ["inner_product", "squared_l2"])
@pytest.mark.parametrize("factory", FACTORIES)
def test_mapped_lists_give_the_bits_that_an_index_of_faiss_gives(factory: str, metric: str, tmp_path: Path) -> None:
    codebook = trained(factory, metric)
    for number, rows in enumerate([slice(0, 1000), slice(1000, 1005), slice(1005, 1005)]):
        folder = tmp_path / str(number)
        folder.mkdir()
        build_part(VECTORS[rows], codebook, folder)
        part, own = open_part(folder), filled_index(codebook, VECTORS[rows])
        queries = VECTORS[::60].astype(np.float32)
        distances, lists = codebook.quantizer.search(queries, 3)
        if not factory.endswith("fs"):  # FAISS reads memory that it did not set for a list of -1
            lists[::4, 1] = -1
        bits = np.packbits(RNG.random(len(VECTORS)) < 0.5, bitorder="little")
        selected = faiss.IDSelectorBitmap(len(bits), faiss.swig_ptr(bits))
        for width, selector in ((1, None), (40, selected), (40, None)):
            with codebook.scanners.probing(queries, lists, distances) as probed:
                found = probed.scan(part.lists_in_memory(probed.lists_P), width, selector)
            expected = searched(own, queries, width, lists, distances, selector)
            assert all((a == b).all() for a, b in zip(found, expected, strict=True))


def filled_index(codebook: Codebook, vectors: np.ndarray) -> faiss.Index:
    """An index of FAISS that holds the vectors in lists of its own."""
    index = faiss.clone_index(codebook.index)
    if len(vectors):
        index.add(vectors.astype(np.float32))
    return index


def searched(
    index: faiss.Index, queries: np.ndarray, width: int, lists: np.ndarray, coarse: np.ndarray, selector: object
) -> tuple[np.ndarray, np.ndarray]:
    parameters = faiss.SearchParametersIVF(sel=selector, nprobe=lists.shape[1])
    if "RaBitQ" in type(index).__name__:
        parameters = faiss.IVFRaBitQSearchParameters(sel=selector, nprobe=lists.shape[1], qb=index.qb)
    distances, rows = np.empty((len(queries), width), np.float32), np.empty((len(queries), width), np.int64)
    pointers = [faiss.swig_ptr(array) for array in (queries, lists, coarse, distances, rows)]
    index.search_preassigned_c(len(queries), pointers[0], width, *pointers[1:], False, parameters)
    return rows, distances


@pytest.mark.parametrize("factory", ["Flat", "IVF64,SQ8", "IVF8,RaBitQfs"])
def test_threads_that_search_at_once_get_the_answers_of_one(factory: str, tmp_path: Path) -> None:
    part, codebook = built(tmp_path / "part", factory)
    codebook = Codebook(codebook.index)  # without scanners, so that threads make them
    live = LivePart(part, np.arange(len(VECTORS)), VECTORS.__getitem__)
    queries = [VECTORS[start::97].astype(np.float32) for start in range(48)]

    def found(of_thread: np.ndarray) -> list[list[int]]:
        return search(of_thread, [live], codebook, 5, nprobe=3)[0].tolist()

    expected = [found(of_thread) for of_thread in queries]
    with ThreadPoolExecutor(6) as threads:
        assert list(threads.map(found, queries * 3)) == expected * 3


@pytest.mark.parametrize("factory", ["IVF8,Flat", "OPQ4,IVF8,PQ4x4", "IVF64,SQ8", "Flat", "IVF8,RaBitQfs"])
def test_a_search_is_right_or_refused_wherever_a_bit_flips(factory: str, tmp_path: Path) -> None:
    made, codebook = built(tmp_path / "part", factory)
    storage = LocalStorage(tmp_path / "db")
    records = {
        name: publish(
            storage,
            "parts",
            path_of("parts", name="s", task="0" * 32, file=name),
            partial(_copy, made.folder / name),
        )
        for name in PART_FILES
    }

    def found(queries: np.ndarray) -> list[list[int]]:
        forget_verified()
        files = VerifiedFiles(storage)
        part = open_part(Path("part"), lambda name: files.bytes(records[name]))
        live = LivePart(part, np.arange(len(VECTORS)), VECTORS.__getitem__)
        return search(queries, [live], codebook, 5, nprobe=2, rerank_margin=4)[0].tolist()

    queries = VECTORS[::400].astype(np.float32)
    expected = found(queries)
    record = records["search_codes.npy"]
    local, size = storage.local(record.path), record.digest.size_bytes
    outcomes = set()
    for position in [*range(0, 60, 4), *RNG.integers(0, size, 25).tolist(), size - 1]:
        flip_bit(local, position, position % 8)
        outcomes.add(outcome(partial(found, queries), expected))
        flip_bit(local, position, position % 8)
    refused = f"refused: {record.path}"
    assert outcomes == ({refused} if factory == "Flat" else {"right", refused})


def outcome(ask: Callable[[], object], expected: object) -> str:
    try:
        return "right" if ask() == expected else "wrong"
    except DamagedFileError as error:
        return f"refused: {error.where}"


def _copy(source: Path, target: Path) -> None:
    target.write_bytes(source.read_bytes())
