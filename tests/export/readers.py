"""Readers of the formats whose trainers are no packages, written as those trainers read; each gives every row's tokens.

A reader yields (tokens of the row, [(tokens of a neighbour, tokens of its continuation), ...]), padding taken off after it was
found to be nothing else. The padding is what the reader itself would put or what the trainer is told it is.
"""

from __future__ import annotations

import atexit
import json
import struct
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from retrodb.retro.data import load_arrays

from .peers import RETRO_PYTORCH, Reader

Row = tuple[list[int], list[tuple[list[int], list[int]]]]
M = 64


def stripped(tokens: object, pad: int) -> list[int]:
    """Tokens without the padding behind them."""
    array = np.asarray(tokens).astype(np.int64)
    length = int((array != pad).sum())
    assert (array[length:] == pad).all()
    return array[:length].tolist()


def read_arrays(out: Path) -> Iterator[Row]:
    """The reader of the bundled model."""
    data = load_arrays(out)
    rows = np.arange(len(data.query_tokens))
    for own, values in zip(data.queries(rows), data.neighbour_values(rows, data.neighbours.shape[1]), strict=True):
        pad = data.pad_token
        yield stripped(own, pad), [(stripped(value[:M], pad), stripped(value[M:], pad)) for value in values]


def read_norlund(out: Path) -> Iterator[Row]:
    """As `dataset_retro.py` does: a continuation ends with its sequence, -1 is padding."""
    spec = json.loads((out / "spec.json").read_bytes())
    [index], [shard], pad = json.loads((out / "index.json").read_bytes()), spec["shards"], spec["pad_token"]
    chunks, sequence = (np.load(out / index[name], mmap_mode="r") for name in ("chunks", "chunk2seq"))
    neighbours = np.load(out / shard["neighbours"], mmap_mode="r")

    def tokens(chunk: int) -> np.ndarray:
        end = chunk + 1
        if end < len(sequence) and sequence[chunk] == sequence[end]:
            end += 1
        found = chunks[chunk:end].reshape(-1)
        return np.pad(found, (0, 2 * M - len(found)), constant_values=pad)

    firsts = np.load(out / shard["seq2chunk"])
    own = np.load(out / shard["chunks"], mmap_mode="r")
    assert (np.load(out / shard["chunk2seq"])[firsts] == np.arange(len(firsts))).all()
    for row, ids in zip(own, neighbours, strict=True):
        values = [tokens(i) if i != -1 else np.full(2 * M, pad) for i in ids.tolist()]
        yield stripped(row, pad), [(stripped(value[:M], pad), stripped(value[M:], pad)) for value in values]


class NemoDataset:
    """As `MMapRetrievalIndexedDataset.get_chunk` does."""

    def __init__(self, prefix: Path) -> None:
        index = prefix.with_suffix(".idx").read_bytes()
        assert index[:9] == b"MMIDRET\x00\x00"
        version, stride, code, documents, m, self.chunks, self.is_retrieval = struct.unpack("<LLBQQQB", index[9:43])
        assert (version, stride, m) == (1, M, M)
        self.dtype = {4: np.dtype(np.int32), 8: np.dtype(np.uint16)}[code]
        self.sizes = np.frombuffer(index, np.int32, documents, 43)
        at = 43 + 4 * documents
        self.pointers = np.frombuffer(index, np.int64, documents, at)
        self.first_chunk = np.frombuffer(index, np.int64, documents, at + 8 * documents)
        self.address = np.frombuffer(index, np.int64, self.chunks, at + 16 * documents)
        self.content = prefix.with_suffix(".bin").read_bytes()

    def check_padding(self, pad: int) -> None:
        """What `RETRODataset._validate_pad_id` asserts of document 0."""
        place = int(self.pointers[0]) + int(self.sizes[0]) * self.dtype.itemsize
        if self.is_retrieval:
            assert (np.frombuffer(self.content, self.dtype, M, place) == pad).all()
        else:
            assert np.frombuffer(self.content, self.dtype, 1, place - self.dtype.itemsize)[0] == pad

    def get_chunk(self, chunk: int) -> np.ndarray:
        size = 2 * M if self.is_retrieval else M
        return np.frombuffer(self.content, self.dtype, size, self.address[chunk])


def read_nemo(out: Path) -> Iterator[Row]:
    """`KNNIndex` next to two `MMapRetrievalIndexedDataset`; -1 is the last address, as in Python.

    Chunk 0 of the training data is the document of padding that `RETRODataset` asserts.
    """
    knn = (out / "knn.idx").read_bytes()
    assert knn[:9] == b"KNNRETM\x00\x00"
    version, k, count, first = struct.unpack("<QQQQ", knn[9:41])
    assert (version, first) == (1, 0)
    neighbours = np.frombuffer(knn, np.int64, count * k, 41).reshape(count, k)
    retrieval, train = NemoDataset(out / "retrieval"), NemoDataset(out / "train")
    assert (retrieval.chunks, train.chunks) >= (1, count)
    pad = int(retrieval.get_chunk(-1)[0])
    train.check_padding(pad)
    retrieval.check_padding(pad)
    assert train.sizes[0] == M
    assert (neighbours[0] == -1).all()
    for chunk, ids in enumerate(neighbours.tolist()[1:], 1):
        values = [retrieval.get_chunk(i) for i in ids]
        pairs = [(stripped(value[:M], pad), stripped(value[M:], pad)) for value in values]
        yield stripped(train.get_chunk(chunk), pad), pairs


def read_parquet(out: Path) -> Iterator[Row]:
    """By chunk id."""
    tables = {
        name: [row for file in sorted((out / name).glob("*")) for row in pq.read_table(file).to_pylist()]
        for name in ("rows", "chunks")
    }
    yield from _joined(tables["rows"], tables["chunks"])


def read_huggingface(out: Path) -> Iterator[Row]:
    """`datasets.load_from_disk`."""
    import datasets

    loaded = datasets.load_from_disk(str(out))
    yield from _joined(loaded["rows"], loaded["chunks"])


def _joined(rows: object, chunks: object) -> Iterator[Row]:
    values = {chunk["chunk_id"]: (chunk["tokens"], chunk["continuation"]) for chunk in chunks}  # type: ignore[attr-defined]
    for row in rows:  # type: ignore[attr-defined]
        yield row["tokens"], [values[i] if i >= 0 else ([], []) for i in row["neighbours"]]


def read_lucidrains(out: Path) -> Iterator[Row]:
    """`retro_pytorch.RETRODataset`, in the process of its own environment, with sequences of one chunk."""
    stats = json.loads((out / "processed-stats.json").read_bytes())
    end, offset = stats["eos_id"], stats["token_offset"]

    def shown(tokens: list[int]) -> list[int]:
        """Before the end of the document or the padding; behind these nothing comes."""
        length = next((i for i, token in enumerate(tokens) if token in (end, 0)), len(tokens))
        assert set(tokens[length:]) <= {end, 0}
        return [token - offset for token in tokens[:length]]

    documents = np.fromfile(out / "train.doc_ids.dat", np.int32)
    is_chunk = np.append(np.diff(documents) == 0, False)  # the last row of a document is the empty one behind it
    is_chunk[: np.fromfile(out / "train.seq.dat", np.int32)[0]] = False  # what is trained on comes last
    reader = retro_pytorch()
    assert reader.ask({"out": str(out), "scratch": str(out.parent), **stats}) == stats["chunks"]
    for row in np.flatnonzero(is_chunk).tolist():
        own, retrieved = reader.ask(row)
        yield shown(own[:M]), [(shown(value[:M]), shown(value[M:])) for value in retrieved]


@cache
def retro_pytorch() -> Reader:
    """One process for all tests: it takes seconds to start."""
    reader = Reader("read_lucidrains.py", RETRO_PYTORCH)
    atexit.register(reader.close)
    return reader


READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    "arrays": read_arrays,
    "norlund": read_norlund,
    "nemo": read_nemo,
    "parquet": read_parquet,
    "huggingface": read_huggingface,
    "lucidrains": read_lucidrains,
}
