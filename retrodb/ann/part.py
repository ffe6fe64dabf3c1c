"""Index parts: immutable folders of files over one run of vectors, all under one codebook.

====================  ===========================  ===========================================================
file                  dtype, shape                 holds
====================  ===========================  ===========================================================
index.faiss           FAISS                        an ordinary index; its ids are the part's rows
lists.npy             int32 (N, A)                 each vector's nearest lists by closeness; the first is its own
order.npy             int64 (N,)                   rows sorted by (list, row)
offsets.npy           int64 (L + 1,)               list l is order[offsets[l]:offsets[l + 1]]
codes.npy             int8 (N, D)                  vectors in that order; value = code * scale + centre
scales.npy            float32 (N, 2)               in that order: scale, squared length of the vector
centre.npy            float32 (D,)                 the codebook's centre, see `Codebook.centre_D`
part.json                                          rows, dimension, metric, codebook digest, width of codes
====================  ===========================  ===========================================================
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

from retrodb.ann import inverted_lists
from retrodb.ann.codebook import Codebook
from retrodb.ann.faiss_library import FaissIndex, faiss_module, one_faiss_thread
from retrodb.ann.list_ranges import ListRanges, find_lists
from retrodb.ann.metric import check_vectors
from retrodb.errors import DamagedFileError, MissingFileError
from retrodb.format.arrays import ByteArray, Float32Array, Int32Array, Int64Array, VectorArray
from retrodb.format.entries import Metric
from retrodb.format.part_files import (
    ARRAY_FILES,
    CENTRE_FILE,
    CODES_FILE,
    INDEX_FILE,
    LISTS_FILE,
    META_FILE,
    OFFSETS_FILE,
    ORDER_FILE,
    PART_FILES,
    SCALES_FILE,
)
from retrodb.store.verified_array import VerifiedArray
from retrodb.store.verified_bytes import MappedBytes

# Nearest lists stored per vector: 32 * 4 bytes (int32) = 128 bytes, and enough for recall 0.95 by the measured curve.
LISTS_KEPT = 32
CODE_BITS = 8  # width of the codes that this version writes
LARGEST_CODE = (1 << CODE_BITS - 1) - 1
BLOCK_ROWS = 16_384  # vectors in float32 at once: 16,384 * 384 dimensions * 4 bytes = 25 MB
_REBUILD = "Run 'retrodb index --retrain', which builds all parts of the space from its vectors"


@dataclass(frozen=True)
class PartMeta:
    """The contents of `part.json`."""

    rows: int
    dim: int
    metric: Metric
    num_lists: int
    codebook: str  # its digest
    code_bits: int = CODE_BITS  # of a code; 8 is the only width that this version reads


@dataclass(frozen=True)
class Part:
    """An open part, memory-mapped. What is read of it is verified first."""

    folder: Path
    meta: PartMeta
    lists_NA: VerifiedArray  # int32
    order_N: VerifiedArray  # int64
    offsets_L1: Int64Array  # all verified
    codes_ND: VerifiedArray  # int8, in list order
    scales_N2: VerifiedArray  # float32, in list order
    centre_D: Float32Array  # what codes are relative to; all verified
    index_file: MappedBytes

    @cached_property
    def index(self) -> FaissIndex:
        """The FAISS index, all of it verified; memory-mapped except for fast-scan codes, which FAISS cannot map."""
        self.index_file.whole()
        return self._opened_index

    def copy_of_index(self) -> FaissIndex:
        """The FAISS index in memory, all of it verified, to be changed."""
        self.index_file.whole()
        return read_index(self.index_file.path, memory_map=False)

    def index_of_lists(self, lists: Int32Array | Int64Array) -> FaissIndex:
        """The FAISS index for a search of some lists (any shape, -1: none): these are verified, and all that is no list."""
        if (ranges := self._list_ranges) is not None:
            probed = _distinct(lists)
            self.index_file.declare(ranges.starts_L[probed], ranges.ends_L[probed])
        return self._opened_index

    def lists(self, lists: Int32Array | Int64Array) -> ListArrays:
        """Plain arrays for a kernel that reads these lists (any shape, -1: none) and no others: they are verified."""
        probed = _distinct(lists)
        rows = self.offsets_L1[probed], self.offsets_L1[probed + 1]
        return ListArrays(self.order_N.declared(*rows), self.codes_ND.declared(*rows), self.scales_N2.declared(*rows))

    @cached_property
    def _list_ranges(self) -> ListRanges | None:
        return find_lists(self.index_file, self.meta.num_lists, self.meta.rows)

    @cached_property
    def _opened_index(self) -> FaissIndex:
        _ = self._list_ranges  # verifies what FAISS parses
        return read_index(self.index_file.path, memory_map=True)


class ListArrays(NamedTuple):
    """The mapped arrays of a part in list order, of which some lists were verified."""

    order_N: Int64Array
    codes_ND: NDArray[np.int8]
    scales_N2: Float32Array


def _distinct(lists: Int32Array | Int64Array) -> Int64Array:
    distinct: Int64Array = np.unique(lists).astype(np.int64)
    return distinct[distinct >= 0]


class VectorRows(Protocol):
    """Vectors (N, D) that are read in blocks of rows, such as a mapped array."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: slice[int, int, None] | Int64Array, /) -> VectorArray: ...


def build_part(
    vectors_ND: VectorRows, codebook: Codebook, folder: Path, lists_kept: int = LISTS_KEPT, threads: int = 1
) -> PartMeta:
    """Writes a part for these vectors into an existing, empty folder.

    Memory is bounded by the FAISS codes and one block of vectors.

    Raises:
        MismatchError: another dimension than the codebook's.
        InputError: NaN or infinity; names the row.
    """
    num_rows, kept = len(vectors_ND), min(lists_kept, codebook.num_lists)
    meta = PartMeta(num_rows, codebook.dim, codebook.metric, codebook.num_lists, codebook.digest)
    lists_NA = open_memmap(folder / LISTS_FILE, mode="w+", dtype=np.int32, shape=(num_rows, kept))
    index = faiss_module().clone_index(codebook.index)
    codes: list[ByteArray] = []
    with one_faiss_thread():
        for start in range(0, num_rows, BLOCK_ROWS):
            block = check_vectors(vectors_ND[start : start + BLOCK_ROWS], meta.dim, start, "vectors")
            if codebook.ivf is None:
                lists_NA[start : start + len(block)] = 0
                index.add(block)
                continue
            rotated = codebook.transform(block, threads)
            lists_BA = codebook.nearest_lists_of(rotated, kept, threads)
            lists_NA[start : start + len(block)] = lists_BA
            codes.append(inverted_lists.search_codes(rotated, lists_BA[:, 0], codebook))
    order_N, offsets_L1 = sort_by_list(lists_NA[:, 0], meta.num_lists)
    if codes:
        inverted_lists.fill_lists(index, order_N, offsets_L1, np.concatenate(codes)[order_N])
    faiss_module().write_index(index, str(folder / INDEX_FILE))
    codes_ND, scales_N2 = create_store(folder, meta)
    for start in range(0, num_rows, BLOCK_ROWS):
        rows = order_N[start : start + BLOCK_ROWS]
        codes_ND[start : start + len(rows)], scales_N2[start : start + len(rows)] = quantize(
            np.asarray(vectors_ND[rows], dtype=np.float32), codebook.centre_D
        )
    finish_part(folder, meta, order_N, offsets_L1, codebook.centre_D)
    return meta


def quantize(vectors_ND: Float32Array, centre_D: Float32Array) -> tuple[NDArray[np.int8], Float32Array]:
    """Symmetric int8 codes relative to a centre, with one scale a vector, and (scale, squared length of the vector) as (N, 2)."""
    relative_ND = vectors_ND - centre_D
    scales_N = np.abs(relative_ND).max(axis=1, initial=0) / np.float32(LARGEST_CODE)
    divisors_N = np.where(scales_N > 0, scales_N, np.float32(1))
    codes_ND = np.rint(relative_ND / divisors_N[:, None]).astype(np.int8)
    return codes_ND, np.stack([scales_N, (vectors_ND**2).sum(axis=1)], axis=1).astype(np.float32)


def decode(codes_ND: NDArray[np.int8], scales_N2: Float32Array, centre_D: Float32Array) -> Float32Array:
    """The vectors (N, D) that codes stand for."""
    vectors_ND: Float32Array = codes_ND.astype(np.float32) * scales_N2[:, :1] + centre_D
    return vectors_ND


def sort_by_list(list_N: Int32Array, num_lists: int) -> tuple[Int64Array, Int64Array]:
    """`order` and `offsets` of rows whose own lists are given."""
    offsets_L1 = np.concatenate([[0], np.cumsum(np.bincount(list_N, minlength=num_lists))])
    return np.argsort(list_N, kind="stable"), offsets_L1.astype(np.int64)


def create_store(folder: Path, meta: PartMeta) -> tuple[NDArray[np.int8], Float32Array]:
    """New `codes` and `scales` files, mapped for writing."""
    codes = open_memmap(folder / CODES_FILE, mode="w+", dtype=np.int8, shape=(meta.rows, meta.dim))
    return codes, open_memmap(folder / SCALES_FILE, mode="w+", dtype=np.float32, shape=(meta.rows, 2))


def finish_part(
    folder: Path, meta: PartMeta, order_N: Int64Array, offsets_L1: Int64Array, centre_D: Float32Array
) -> None:
    """Write the rest of a part: its order, centre and description.

    The arrays that are mapped for writing need no flush: publishing a file writes its mapped pages to the disk too.
    """
    np.save(folder / ORDER_FILE, order_N)
    np.save(folder / OFFSETS_FILE, offsets_L1)
    np.save(folder / CENTRE_FILE, centre_D)
    (folder / META_FILE).write_text(json.dumps(asdict(meta), sort_keys=True) + "\n", encoding="utf-8")


def open_part(folder: Path, files: Mapping[str, MappedBytes] | None = None) -> Part:
    """Opens a part.

    Args:
        folder: of the part, which errors name.
        files: its files by name, verified; None for a part that this process wrote.

    Raises:
        MissingFileError: a file is not there.
        DamagedFileError: a file cannot be read, or files do not belong together.
    """
    if files is None:
        for name in PART_FILES:
            if not (folder / name).is_file():
                raise MissingFileError("file of an index part is missing", where=str(folder / name), remedy=_REBUILD)
        files = {name: MappedBytes(folder / name) for name in PART_FILES}
    try:
        meta = PartMeta(**json.loads(bytes(files[META_FILE].whole())))
    except (ValueError, TypeError) as error:
        raise DamagedFileError(f"not an index part ({error})", where=str(folder), remedy=_REBUILD) from error
    if meta.code_bits != CODE_BITS:
        raise DamagedFileError(
            f"codes of {meta.code_bits} bits, which this version cannot read", where=str(folder), remedy=_REBUILD
        )
    lists_NA, order_N, offsets_L1, codes_ND, scales_N2, centre_D = (VerifiedArray(files[name]) for name in ARRAY_FILES)
    shapes = tuple(array.shape for array in (order_N, offsets_L1, codes_ND, scales_N2, centre_D))
    expected = ((meta.rows,), (meta.num_lists + 1,), (meta.rows, meta.dim), (meta.rows, 2), (meta.dim,))
    if shapes != expected or len(lists_NA) != meta.rows:
        raise DamagedFileError("files of different parts are mixed", where=str(folder), remedy=_REBUILD)
    offsets, centre = offsets_L1.whole(), centre_D.whole()
    return Part(folder, meta, lists_NA, order_N, offsets, codes_ND, scales_N2, centre, files[INDEX_FILE])


def read_index(path: Path, memory_map: bool) -> FaissIndex:
    """The FAISS index in a file that was verified. Raises DamagedFileError when FAISS cannot read it."""
    faiss = faiss_module()
    flags = faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY if memory_map else 0
    try:
        return faiss.read_index(str(path), flags)
    except RuntimeError as error:
        raise DamagedFileError("FAISS cannot read this index", where=str(path), remedy=_REBUILD) from error
