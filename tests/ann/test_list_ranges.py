"""The lists of a FAISS index are found in its file where FAISS reads them, and a search verifies those that it probes."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import faiss
import numpy as np
import pytest
from flipped import flip_bit, forget_verified

from retrodb.ann.codebook import Codebook
from retrodb.ann.list_ranges import find_lists
from retrodb.ann.part import Part, build_part, open_part
from retrodb.ann.rerank import LivePart
from retrodb.ann.search import search
from retrodb.ann.training import train
from retrodb.errors import DamagedFileError
from retrodb.format.kinds import path_of
from retrodb.format.part_files import PART_FILES
from retrodb.store.publish import publish
from retrodb.store.storage import LocalStorage
from retrodb.store.verified_bytes import MappedBytes
from retrodb.store.verify import VerifiedFiles

RNG = np.random.default_rng(3)
SAMPLE = RNG.standard_normal((10_000, 16)).astype(np.float16)
VECTORS = SAMPLE[:1200]
MAPPED = ("IVF8,Flat", "IVF8,SQ8", "IVF8,PQ4x4", "OPQ4,IVF8,PQ4x4", "IVF8,RaBitQ", "IVF64,SQ8")
READ_WHOLE = ("Flat", "IVF8,PQ4x4fs", "IVF8,RaBitQfs")


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("retrodb.format.blocks.BLOCK_BYTES", 128)


@cache
def trained(factory: str) -> Codebook:
    return train(SAMPLE, factory, 0, "inner_product")


def built(folder: Path, factory: str, rows: int = len(VECTORS)) -> tuple[Part, Codebook]:
    codebook = trained(factory)
    folder.mkdir()
    build_part(VECTORS[:rows], codebook, folder)
    return open_part(folder), codebook


@pytest.mark.parametrize("factory", MAPPED)
@pytest.mark.parametrize("rows", [0, 5, 1200])
def test_lists_are_found_where_faiss_has_them(factory: str, rows: int, tmp_path: Path) -> None:
    part, _ = built(tmp_path / "part", factory, rows)
    ranges = find_lists(part.index_file, part.meta.num_lists, rows)
    assert ranges is not None
    index = faiss.downcast_index(getattr(part.index, "index", part.index))
    lists = faiss.downcast_InvertedLists(index.invlists)
    assert isinstance(lists, faiss.OnDiskInvertedLists)
    for number in range(part.meta.num_lists):
        entry = lists.lists.at(number)
        size = entry.size * (lists.code_size + 8)
        assert ranges.ends_L[number] - ranges.starts_L[number] == size
        assert not size or ranges.starts_L[number] == entry.offset
        codes = faiss.rev_swig_ptr(lists.get_codes(number), entry.size * lists.code_size)
        start = ranges.starts_L[number]
        assert bytes(part.index_file.data[start : start + len(codes)]) == codes.tobytes()


@pytest.mark.parametrize("factory", READ_WHOLE)
def test_other_indexes_have_no_ranges(factory: str, tmp_path: Path) -> None:
    part, _ = built(tmp_path / "part", factory)
    assert find_lists(part.index_file, part.meta.num_lists, part.meta.rows) is None


def test_a_file_that_is_no_index_has_no_ranges(tmp_path: Path) -> None:
    for data in (
        b"x",
        b"ilar" + bytes(50),
        b"ilar" + (8).to_bytes(8, "little"),
        b"ilar" + (8).to_bytes(8, "little") * 9,
    ):
        (tmp_path / "file").write_bytes(data)
        assert find_lists(MappedBytes(tmp_path / "file"), 8, 3) is None


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
        part = open_part(Path("part"), {name: files.bytes(record) for name, record in records.items()})
        live = LivePart(part, np.arange(len(VECTORS)), VECTORS.__getitem__)
        return search(queries, [live], codebook, 5, nprobe=2, rerank_margin=4)[0].tolist()

    queries = VECTORS[::400].astype(np.float32)
    expected = found(queries)
    record = records["index.faiss"]
    local, size = storage.local(record.path), record.digest.size_bytes
    outcomes = set()
    for position in [*range(0, 60, 4), *RNG.integers(0, size, 25).tolist(), size - 1]:
        flip_bit(local, position, position % 8)
        outcomes.add(outcome(partial(found, queries), expected))
        flip_bit(local, position, position % 8)
    refused = f"refused: {record.path}"
    assert outcomes == ({"right", refused} if factory in MAPPED else {refused})


def outcome(ask: Callable[[], object], expected: object) -> str:
    try:
        return "right" if ask() == expected else "wrong"
    except DamagedFileError as error:
        return f"refused: {error.where}"


def _copy(source: Path, target: Path) -> None:
    target.write_bytes(source.read_bytes())
