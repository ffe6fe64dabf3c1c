"""An index as one file that `faiss.read_index` opens, written one list after the other.

FAISS writes what it was trained to, then the lists of an `IndexIVF`, and then what else a class has. We let it write the empty
index without any lists, and put ours in that place:

    "ilar" L B "full" L sizes, and for each list that is not empty: codes, ids
    "ilbl" L -1 R block-bytes, and for each list: number of ids, ids, bytes of blocks, blocks (fast-scan)

A flat index is an `IndexIDMap` of an `IndexFlat`, which ends with the vectors and the ids.

Legend: L lists, B bytes of a code, R rows of a block, N rows.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import BinaryIO

import numpy as np

from retrodb.ann.codebook import Codebook
from retrodb.ann.faiss_library import FaissIndex, faiss_module
from retrodb.ann.search_codes import CodeForm, code_form, packed_codes
from retrodb.format.arrays import AnyArray, Int64Array
from retrodb.store.verified_bytes import MappedBytes

_NO_LISTS = b"il00"
_COMPARED_BYTES = 1 << 20

CodedRows = Iterable[tuple[Int64Array, Int64Array, AnyArray]]
"""Blocks of rows by (list, id): lists (n,), ids (n,), and codes (n, B) or vectors (n, D)."""


def write_faiss_file(
    path: Path, codebook: Codebook, sizes_L: Int64Array, rows: Callable[[], CodedRows], nprobe: int
) -> None:
    """Write an index. Memory: the codebook as FAISS has it, some blocks of rows, and the longest list.

    Args:
        path: a new file, in a folder where temporary files may be written.
        codebook: that nothing else uses; it is changed.
        sizes_L: rows of each list.
        rows: reads all rows from the beginning.
        nprobe: lists that a search in the file reads unless it is told otherwise.
    """
    form = code_form(codebook)
    with path.open("wb") as file:
        if codebook.ivf is None:
            _write_flat(file, codebook, int(sizes_L.sum()), rows)
        else:
            codebook.ivf.nprobe = nprobe
            _write_lists(file, path.parent, codebook, form, sizes_L, rows())


def _write_flat(file: BinaryIO, codebook: Codebook, num_rows: int, rows: Callable[[], CodedRows]) -> None:
    faiss = faiss_module()
    empty = faiss.IndexIDMap(codebook.index)
    empty.ntotal = codebook.index.ntotal = num_rows
    head = bytes(faiss.serialize_index(empty))
    assert head.endswith(bytes(16)), "FAISS ends a flat index with the vectors and the ids"
    file.write(head[:-16] + struct.pack("<Q", num_rows * codebook.dim))
    for _, _, vectors in rows():
        file.write(np.ascontiguousarray(vectors, dtype="<f4").data)
    file.write(struct.pack("<Q", num_rows))
    for _, ids, _ in rows():
        file.write(np.ascontiguousarray(ids, dtype="<i8").data)


def _write_lists(
    file: BinaryIO, folder: Path, codebook: Codebook, form: CodeForm, sizes_L: Int64Array, rows: CodedRows
) -> None:
    codebook.index.ntotal = codebook.ivf.ntotal = int(sizes_L.sum())
    num_lists = len(sizes_L)
    with TemporaryDirectory(dir=folder, prefix="codebook-") as temporary:
        empty, place = _without_lists(Path(temporary), codebook.index, codebook.ivf)
        _copy(empty[:place], file)
        if form.is_packed:
            file.write(struct.pack("<4sQqQQ", b"ilbl", num_lists, -1, form.block_rows, form.dtype.itemsize))
        else:
            file.write(struct.pack("<4sQQ4sQ", b"ilar", num_lists, form.code_bytes, b"full", num_lists))
            file.write(sizes_L.astype("<i8").data)
        expected = 0
        for list_, ids, codes in _whole_lists(rows):
            if form.is_packed:
                file.write(bytes(16 * (list_ - expected)))  # lists without ids and blocks
                blocks = packed_codes(codes, form)
                file.write(struct.pack("<Q", len(ids)) + ids.astype("<i8").tobytes())
                file.write(struct.pack("<Q", blocks.nbytes) + blocks.tobytes())
            else:
                file.write(np.ascontiguousarray(codes).data)
                file.write(ids.astype("<i8").data)
            expected = list_ + 1
        if form.is_packed:
            file.write(bytes(16 * (num_lists - expected)))
        _copy(empty[place + len(_NO_LISTS) :], file)


def _whole_lists(rows: CodedRows) -> Iterator[tuple[int, Int64Array, AnyArray]]:
    """The rows of one list after the other: its number, ids and codes."""
    number = -1
    ids: list[Int64Array] = []
    codes: list[AnyArray] = []
    for lists_n, ids_n, codes_n in rows:
        starts = np.concatenate([[0], np.flatnonzero(np.diff(lists_n)) + 1, [len(lists_n)]]).tolist()
        for start, stop in pairwise(starts):
            if int(lists_n[start]) != number and ids:
                yield number, np.concatenate(ids), np.concatenate(codes)
                ids, codes = [], []
            number = int(lists_n[start])
            ids.append(ids_n[start:stop])
            codes.append(codes_n[start:stop])
    if ids:
        yield number, np.concatenate(ids), np.concatenate(codes)


def _without_lists(folder: Path, index: FaissIndex, ivf: FaissIndex) -> tuple[memoryview, int]:
    """The bytes of an index without lists, and where these would be: there it begins to differ from the empty index."""
    faiss, without, empty = faiss_module(), folder / "without.faiss", folder / "empty.faiss"
    faiss.write_index(index, str(empty))
    lists = ivf.invlists
    ivf.invlists = None
    try:
        faiss.write_index(index, str(without))
    finally:
        ivf.invlists = lists
    first, second = MappedBytes(without).data, MappedBytes(empty).data
    place = _first_difference(first, second) - 2  # "il" is common to all marks of lists
    assert first[place : place + len(_NO_LISTS)] == _NO_LISTS, "FAISS marks an index without lists"
    return first, place


def _first_difference(first: memoryview, second: memoryview) -> int:
    for start in range(0, len(first), _COMPARED_BYTES):
        one, other = first[start : start + _COMPARED_BYTES], second[start : start + _COMPARED_BYTES]
        if one != other:
            size = min(len(one), len(other))
            pairs = np.frombuffer(one[:size], np.uint8) != np.frombuffer(other[:size], np.uint8)
            return start + (int(pairs.argmax()) if pairs.any() else size)
    return len(first)


def _copy(data: memoryview, file: BinaryIO) -> None:
    for start in range(0, len(data), _COMPARED_BYTES):
        file.write(data[start : start + _COMPARED_BYTES])
