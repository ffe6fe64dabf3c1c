"""Index parts: immutable folders of files over one run of vectors, all under one codebook.

A part holds lists only. The codebook is a file of its own, which a process opens once. A list that has no row in a part costs
nothing in it. All arrays but `lists.npy` are in the order of the lists.

====================  ===========================  ===========================================================
file                  dtype, shape                 holds
====================  ===========================  ===========================================================
part.json                                          rows, dimension, metric, lists and digest of the codebook, width of codes
filled.npy            int32 (M,)                   the lists that are not empty, ascending
offsets.npy           int64 (M + 1,)               list filled[m] is order[offsets[m]:offsets[m + 1]]
order.npy             int64 (N,)                   rows sorted by (list, row)
codes.npy             int8 (N, D)                  vectors in that order; value = code * scale + centre
scales.npy            float32 (N, 2)               in that order: scale, squared length of the vector
centre.npy            float32 (D,)                 the codebook's centre, see `Codebook.centre_D`
search_codes.npy      see `search_codes.py`        in that order: what FAISS scans, which says itself how it is packed
lists.npy             int32 (N,)                   the list of each row, in the order of the rows
====================  ===========================  ===========================================================
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

from retrodb.ann import search_codes
from retrodb.ann.codebook import Codebook
from retrodb.ann.faiss_library import one_faiss_thread
from retrodb.ann.metric import check_vectors
from retrodb.ann.search_codes import CodeForm, StoredSearchCodes
from retrodb.errors import DamagedFileError, MissingFileError
from retrodb.format.arrays import AnyArray, Float32Array, Int32Array, Int64Array, VectorArray
from retrodb.format.entries import Metric
from retrodb.format.part_files import (
    CENTRE_FILE,
    CODES_FILE,
    FILLED_FILE,
    LISTS_FILE,
    META_FILE,
    OFFSETS_FILE,
    ORDER_FILE,
    PART_FILES,
    SCALES_FILE,
    SEARCH_CODES_FILE,
)
from retrodb.store.verified_array import VerifiedArray
from retrodb.store.verified_bytes import MappedBytes

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
    """A part whose files are mapped when they are needed. What is read of them is verified first."""

    folder: Path
    meta: PartMeta
    filled_M: Int32Array  # all verified
    offsets_M1: Int64Array  # all verified
    open_file: Callable[[str], MappedBytes]

    @cached_property
    def lists_N(self) -> VerifiedArray:
        """(N,) int32, in the order of the rows. A join probes more lists, and finds them when it reads a vector."""
        return self._array(LISTS_FILE, (self.meta.rows,))

    @cached_property
    def order_N(self) -> VerifiedArray:
        """(N,) int64."""
        return self._array(ORDER_FILE, (self.meta.rows,))

    @cached_property
    def codes_ND(self) -> VerifiedArray:
        """(N, D) int8, in list order."""
        return self._array(CODES_FILE, (self.meta.rows, self.meta.dim))

    @cached_property
    def scales_N2(self) -> VerifiedArray:
        """(N, 2) float32, in list order."""
        return self._array(SCALES_FILE, (self.meta.rows, 2))

    @cached_property
    def centre_D(self) -> Float32Array:
        """(D,) float32: what codes are relative to; all verified."""
        centre_D: Float32Array = self._array(CENTRE_FILE, (self.meta.dim,)).whole()
        return centre_D

    @cached_property
    def search_codes(self) -> StoredSearchCodes:
        """What FAISS scans."""
        array = VerifiedArray(self.open_file(SEARCH_CODES_FILE))
        try:
            codes = StoredSearchCodes(CodeForm.of(array.dtype, array.shape), array, self.offsets_M1)
        except ValueError as error:
            raise DamagedFileError(f"not search codes ({error})", where=str(self.folder), remedy=_REBUILD) from error
        if len(array) != codes.blocks_M1[-1]:
            raise self._mixed()
        return codes

    @cached_property
    def offsets_L1(self) -> Int64Array:
        """(L + 1,) int64: list l has the positions `offsets[l]` to `offsets[l + 1]`. It costs memory for each list."""
        sizes_L = np.zeros(self.meta.num_lists, np.int64)
        sizes_L[self.filled_M] = np.diff(self.offsets_M1)
        return np.concatenate([[0], np.cumsum(sizes_L)])

    def span_of_lists(self, first_list: int, end_list: int) -> tuple[int, int]:
        """The positions of the rows of consecutive lists: the first, and one past the last."""
        start, end = self.offsets_M1[np.searchsorted(self.filled_M, [first_list, end_list])].tolist()
        return start, end

    def sizes_of_lists_in(self, first_list: int, end_list: int) -> Int64Array:
        """The number of rows of each of some consecutive lists, (end_list - first_list,) int64."""
        sizes: Int64Array = np.zeros(end_list - first_list, np.int64)
        low, high = np.searchsorted(self.filled_M, [first_list, end_list])
        sizes[self.filled_M[low:high] - first_list] = np.diff(self.offsets_M1[low : high + 1])
        return sizes

    def rows_of_lists(self, lists_P: Int64Array) -> Int64Array:
        """The rows of some different lists, one list after another."""
        numbers_P, sizes_P = self._numbers(lists_P)
        starts_P = self.offsets_M1[numbers_P]
        order_N = self.order_N.declared(starts_P, starts_P + sizes_P)
        offsets = np.concatenate([[0], np.cumsum(sizes_P)])
        rows: Int64Array = order_N[np.repeat(starts_P - offsets[:-1], sizes_P) + np.arange(offsets[-1])]
        return rows

    def positions_of_lists(self, lists_P: Int64Array) -> tuple[Int64Array, Int64Array]:
        """The positions of the rows of each of some different lists: the first, and one past the last, (P,) each."""
        numbers_P, sizes_P = self._numbers(lists_P)
        starts_P = self.offsets_M1[numbers_P]
        return starts_P, starts_P + sizes_P

    def list_of(self, positions: Int64Array) -> Int64Array:
        """The list of each position, (n,) int64."""
        lists: Int64Array = self.filled_M[np.searchsorted(self.offsets_M1, positions, side="right") - 1].astype(
            np.int64
        )
        return lists

    def lists(self, lists: Int32Array | Int64Array) -> ListArrays:
        """Plain arrays for a kernel that reads these lists (any shape, -1: none) and no others: they are verified."""
        distinct: Int64Array = np.unique(lists).astype(np.int64)
        rows = self.positions_of_lists(distinct[np.searchsorted(distinct, 0) :])
        return ListArrays(self.order_N.declared(*rows), self.codes_ND.declared(*rows), self.scales_N2.declared(*rows))

    def lists_in_memory(self, lists_P: Int64Array) -> Int64Array:
        """(P, 3) int64, see `ProbedLists.scan`: where some lists are mapped, while the part lives; they are verified.

        Args:
            lists_P: different lists.
        """
        numbers_P, sizes_P = self._numbers(lists_P)
        starts_P, blocks_P = self.offsets_M1[numbers_P], self.search_codes.blocks_M1[numbers_P]
        self.order_N.declared(starts_P, starts_P + sizes_P)
        self.search_codes.array.declared(blocks_P, blocks_P + self.search_codes.form.num_blocks(sizes_P))
        (rows, row_bytes), (codes, block_bytes) = self._places
        table_P3 = np.empty((len(lists_P), 3), dtype=np.int64)
        table_P3[:, 0] = sizes_P
        table_P3[:, 2] = codes + blocks_P * block_bytes
        table_P3[:, 1] = rows + starts_P * row_bytes - table_P3[:, 2]
        return table_P3

    @cached_property
    def _places(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """The addresses of the row numbers and of the search codes, each with the bytes of a row of the array."""
        nothing = np.zeros(0, np.int64)
        arrays = (array.declared(nothing, nothing) for array in (self.order_N, self.search_codes.array))
        rows, codes = ((array.ctypes.data, array.strides[0]) for array in arrays)
        return rows, codes

    def _numbers(self, lists_P: Int64Array) -> tuple[Int64Array, Int64Array]:
        """The number of each of some lists, none of them negative, among those that are not empty, and its size.

        An empty list has any number, and size 0.
        """
        if len(self.filled_M) == self.meta.num_lists:
            return lists_P, self._sizes_M[lists_P]
        if not len(self.filled_M):
            return np.zeros(len(lists_P), np.int64), np.zeros(len(lists_P), np.int64)
        numbers_P = self.filled_M.searchsorted(lists_P)
        np.minimum(numbers_P, len(self.filled_M) - 1, out=numbers_P)
        sizes_P = self._sizes_M[numbers_P] * (self.filled_M[numbers_P] == lists_P)
        return numbers_P, sizes_P

    @cached_property
    def _sizes_M(self) -> Int64Array:
        return np.diff(self.offsets_M1)

    def _array(self, name: str, shape: tuple[int | None, ...]) -> VerifiedArray:
        """Raises DamagedFileError: it has another shape than the part's description says; None is any number."""
        array = VerifiedArray(self.open_file(name))
        if len(array.shape) != len(shape) or any(a not in (b, None) for a, b in zip(shape, array.shape, strict=True)):
            raise self._mixed()
        return array

    def _mixed(self) -> DamagedFileError:
        return DamagedFileError("files of different parts are mixed", where=str(self.folder), remedy=_REBUILD)


class ListArrays(NamedTuple):
    """The mapped arrays of a part in list order, of which some lists were verified."""

    order_N: Int64Array
    codes_ND: NDArray[np.int8]
    scales_N2: Float32Array


class VectorRows(Protocol):
    """Vectors (N, D) that are read in blocks of rows, such as a mapped array."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: slice[int, int, None] | Int64Array, /) -> VectorArray: ...


def build_part(vectors_ND: VectorRows, codebook: Codebook, folder: Path, threads: int = 1) -> PartMeta:
    """Writes a part for these vectors into an existing, empty folder.

    Memory is bounded by 24 bytes a row and some blocks of vectors.

    Raises:
        MismatchError: another dimension than the codebook's.
        InputError: NaN or infinity; names the row.
    """
    num_rows = len(vectors_ND)
    form = search_codes.code_form(codebook)
    meta = PartMeta(num_rows, codebook.dim, codebook.metric, codebook.num_lists, codebook.digest)
    lists_N = open_memmap(folder / LISTS_FILE, mode="w+", dtype=np.int32, shape=(num_rows,))
    row_codes_NB = open_memmap(folder / _ROW_CODES, mode="w+", dtype=np.uint8, shape=(num_rows, form.code_bytes))
    with one_faiss_thread():
        for start in range(0, num_rows, BLOCK_ROWS):
            block = check_vectors(vectors_ND[start : start + BLOCK_ROWS], meta.dim, start, "vectors")
            rows = slice(start, start + len(block))
            if codebook.ivf is None:
                lists_N[rows] = 0
                row_codes_NB[rows] = np.ascontiguousarray(block).view(np.uint8)
                continue
            rotated = codebook.transform(block, threads)
            lists_N[rows] = lists_B = codebook.nearest_lists_of(rotated, 1, threads)[:, 0]
            row_codes_NB[rows] = search_codes.encode(rotated, lists_B, codebook)
    order_N = np.argsort(lists_N, kind="stable")
    filled_M, sizes_M = np.unique(lists_N, return_counts=True)
    offsets_M1 = np.concatenate([[0], np.cumsum(sizes_M, dtype=np.int64)])
    in_order = _InOrder(row_codes_NB.view(form.value_dtype), order_N)
    search_codes.store_search_codes(folder / SEARCH_CODES_FILE, form, offsets_M1, in_order)
    del row_codes_NB, in_order
    (folder / _ROW_CODES).unlink()
    codes_ND, scales_N2 = create_store(folder, meta)
    for start in range(0, num_rows, BLOCK_ROWS):
        positions = order_N[start : start + BLOCK_ROWS]
        codes_ND[start : start + len(positions)], scales_N2[start : start + len(positions)] = quantize(
            np.asarray(vectors_ND[positions], dtype=np.float32), codebook.centre_D
        )
    np.save(folder / ORDER_FILE, order_N)
    finish_part(folder, meta, filled_M, offsets_M1, codebook.centre_D)
    return meta


_ROW_CODES = "row_codes.npy"  # while a part is built: search codes in the order of the rows


@dataclass(frozen=True)
class _InOrder:
    """Rows of an array in another order."""

    array: AnyArray
    order_N: Int64Array

    def __getitem__(self, positions: slice[int, int, None]) -> AnyArray:
        rows: AnyArray = self.array[self.order_N[positions]]
        return rows


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


def create_store(folder: Path, meta: PartMeta) -> tuple[NDArray[np.int8], Float32Array]:
    """New `codes` and `scales` files, mapped for writing."""
    codes = open_memmap(folder / CODES_FILE, mode="w+", dtype=np.int8, shape=(meta.rows, meta.dim))
    return codes, open_memmap(folder / SCALES_FILE, mode="w+", dtype=np.float32, shape=(meta.rows, 2))


def finish_part(
    folder: Path, meta: PartMeta, filled_M: Int32Array, offsets_M1: Int64Array, centre_D: Float32Array
) -> None:
    """Write the rest of a part: its lists, centre and description.

    The arrays that are mapped for writing need no flush: publishing a file writes its mapped pages to the disk too.
    """
    np.save(folder / FILLED_FILE, filled_M.astype(np.int32))
    np.save(folder / OFFSETS_FILE, offsets_M1.astype(np.int64))
    np.save(folder / CENTRE_FILE, centre_D)
    (folder / META_FILE).write_text(json.dumps(asdict(meta), sort_keys=True) + "\n", encoding="utf-8")


def open_part(folder: Path, open_file: Callable[[str], MappedBytes] | None = None) -> Part:
    """Opens a part. Of its files, those that say where the lists are are read; the others are opened when they are needed.

    Args:
        folder: of the part, which errors name.
        open_file: maps a file by its name, to be verified; None for a part that this process wrote.

    Raises:
        MissingFileError: a file is not there.
        DamagedFileError: a file cannot be read, or files do not belong together.
    """
    open_file = open_file or _file_in(folder)
    try:
        meta = PartMeta(**json.loads(bytes(open_file(META_FILE).whole())))
    except (ValueError, TypeError) as error:
        raise DamagedFileError(f"not an index part ({error})", where=str(folder), remedy=_REBUILD) from error
    if meta.code_bits != CODE_BITS:
        raise DamagedFileError(
            f"codes of {meta.code_bits} bits, which this version cannot read", where=str(folder), remedy=_REBUILD
        )
    filled_M, offsets_M1 = (VerifiedArray(open_file(name)).whole() for name in (FILLED_FILE, OFFSETS_FILE))
    if len(offsets_M1) != len(filled_M) + 1 or offsets_M1[-1] != meta.rows:
        raise DamagedFileError("files of different parts are mixed", where=str(folder), remedy=_REBUILD)
    return Part(folder, meta, filled_M, offsets_M1, open_file)


def _file_in(folder: Path) -> Callable[[str], MappedBytes]:
    """Opens the files of a part in a folder. Raises MissingFileError when there are not all."""
    for name in PART_FILES:
        if not (folder / name).is_file():
            raise MissingFileError("file of an index part is missing", where=str(folder / name), remedy=_REBUILD)
    return lambda name: MappedBytes(folder / name)
