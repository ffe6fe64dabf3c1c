"""Search codes: what FAISS scans of a vector. How they are made, and how they are stored in the order of the lists.

The `add` of FAISS assigns vectors again, by a product whose bits depend on the batch. So vectors are encoded under the lists that
we keep. The rows of a list ascend, which is the order in which FAISS then breaks ties.

===========  ==============================  ==================================================================
kind         array in `search_codes.npy`     of
===========  ==============================  ==================================================================
vectors      float32 (N, D)                  `Flat`: the vectors themselves
plain        uint8 (N, B)                    most factories: a code per row
pq4, rabitq  blocks of uint8, (blocks,)      fast-scan: R codes of a list in a block, interleaved as FAISS reads them
===========  ==============================  ==================================================================

A block is a field of R * B bytes, whose name says how it is packed: `pq4_R_Q` of Q sub-quantizers, or `rabitq_R_D_b` of D
dimensions with b bits each. The last block of a list is filled up with copies of its last code, which FAISS does not look at. So
whoever reads blocks without the offsets of lists reads codes of rows, and no others.

Legend: N rows by (list, row), D dimensions, B bytes of a code, R rows of a block, M lists that are not empty.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from numpy.lib.format import open_memmap

from retrodb.ann.codebook import Codebook
from retrodb.ann.faiss_library import FaissObject, faiss_module
from retrodb.errors import ConfigError
from retrodb.format.arrays import AnyArray, AnyDType, ByteArray, Float32Array, Int32Array, Int64Array
from retrodb.store.verified_array import VerifiedArray

BLOCK_ROWS = 16_384  # rows whose codes are copied at once

CodeKind = Literal["vectors", "plain", "pq4", "rabitq"]


@dataclass(frozen=True)
class CodeForm:
    """How the search codes of a part are stored."""

    kind: CodeKind
    code_bytes: int  # of a row
    block_rows: int = 1  # whose codes are interleaved
    quantized: int = 0  # of fast-scan codes: the sub-quantizers of a vector (pq4), or its dimensions (rabitq)
    bits: int = 0  # of rabitq: bits a dimension

    @property
    def is_packed(self) -> bool:
        """Whether the codes of several rows are interleaved."""
        return self.kind in ("pq4", "rabitq")

    @property
    def value_dtype(self) -> np.dtype[np.float32] | np.dtype[np.uint8]:
        """The type of the values of a row."""
        return np.dtype(np.float32) if self.kind == "vectors" else np.dtype(np.uint8)

    @property
    def width(self) -> int:
        """The number of values of a row."""
        return self.code_bytes // self.value_dtype.itemsize

    @property
    def dtype(self) -> AnyDType:
        """The type of the stored array."""
        if not self.is_packed:
            return self.value_dtype
        numbers = [self.block_rows, self.quantized, *([self.bits] if self.kind == "rabitq" else [])]
        return np.dtype([("_".join([self.kind, *map(str, numbers)]), np.uint8, (self.block_rows * self.code_bytes,))])

    def num_blocks(self, sizes: Int64Array) -> Int64Array:
        """Rows of the stored array of lists of some sizes."""
        return -(-sizes // self.block_rows) if self.is_packed else sizes

    def shape(self, num_blocks: int) -> tuple[int, ...]:
        """The shape of the stored array."""
        return (num_blocks,) if self.is_packed else (num_blocks, self.width)

    @staticmethod
    def of(dtype: AnyDType, shape: tuple[int, ...]) -> CodeForm:
        """The form of a stored array. Raises ValueError: it is none."""
        if dtype in (np.float32, np.uint8) and len(shape) == 2:
            return CodeForm("plain" if dtype == np.uint8 else "vectors", shape[1] * dtype.itemsize)
        [name] = dtype.names or ("",)
        kind, *numbers = name.split("_")
        if kind not in ("pq4", "rabitq") or len(shape) != 1 or len(numbers) != (3 if kind == "rabitq" else 2):
            raise ValueError(f"search codes of type {dtype} and shape {shape}")
        rows, quantized, *bits = map(int, numbers)
        form = CodeForm("pq4" if kind == "pq4" else "rabitq", dtype.itemsize // rows, rows, quantized, *bits)
        if form.dtype != dtype:
            raise ValueError(f"search codes of type {dtype}")
        return form


def code_form(codebook: Codebook) -> CodeForm:
    """How the search codes under a codebook are stored.

    Raises:
        ConfigError: a block of codes that FAISS packs cannot be unpacked again.
    """
    ivf = codebook.ivf
    if ivf is None:
        return CodeForm("vectors", 4 * codebook.dim)
    faiss, size = faiss_module(), int(ivf.code_size)
    if isinstance(ivf, faiss.IndexIVFRaBitQFastScan):
        form = CodeForm("rabitq", size, int(ivf.bbs), int(ivf.d), int(ivf.rabitq.nb_bits))
    elif isinstance(ivf, faiss.IndexIVFFastScan):
        form = CodeForm("pq4", size, int(ivf.bbs), int(ivf.M))
    else:
        return CodeForm("plain", size)
    codes = np.random.default_rng(0).integers(0, 256, (form.block_rows, size), dtype=np.uint8)
    if form.kind == "pq4" and form.quantized % 2:
        codes[:, -1] &= 15  # four of its bits mean nothing
    if not (unpacked_codes(packed_codes(codes, form), form) == codes).all():
        raise ConfigError(
            f"blocks of {form.block_rows} fast-scan codes are not supported",
            remedy="Leave the size of a block out of the factory.",
        )
    return form


def encode(rotated_ND: Float32Array, list_N: Int32Array, codebook: Codebook) -> ByteArray:
    """The search codes (N, B) of vectors in the space of the centroids, under their lists."""
    faiss = faiss_module()
    codes_NB: ByteArray = np.zeros((len(rotated_ND), codebook.ivf.code_size), dtype=np.uint8)
    vectors, lists = np.ascontiguousarray(rotated_ND), list_N.astype(np.int64)
    codebook.ivf.encode_vectors(len(vectors), *map(faiss.swig_ptr, (vectors, lists, codes_NB)), False)
    return codes_NB


class CodeRows(Protocol):
    """Rows (N, B) of codes in the order of the lists, which are read in ranges."""

    def __getitem__(self, positions: slice[int, int, None], /) -> AnyArray: ...


def store_search_codes(path: Path, form: CodeForm, offsets_M1: Int64Array, codes_NB: CodeRows) -> None:
    """Write the search codes of a part. Memory: a list, or a block of rows if that is more.

    Args:
        offsets_M1: list m has the positions `offsets[m]` to `offsets[m + 1]`.
    """
    blocks_M1 = block_offsets(form, offsets_M1)
    stored = open_memmap(path, mode="w+", dtype=form.dtype, shape=form.shape(int(blocks_M1[-1])))
    if not len(stored):
        return
    if not form.is_packed:
        for start in range(0, len(stored), BLOCK_ROWS):
            stored[start : start + BLOCK_ROWS] = codes_NB[start : start + BLOCK_ROWS]
        return
    for first, last in _runs(offsets_M1):
        codes = codes_NB[int(offsets_M1[first]) : int(offsets_M1[last])]
        sizes = np.diff(offsets_M1[first : last + 1])
        stored[blocks_M1[first] : blocks_M1[last]] = packed_codes(codes, form, sizes)


def _runs(offsets_M1: Int64Array) -> Iterator[tuple[int, int]]:
    """Runs of lists of about `BLOCK_ROWS` rows, at least one list each."""
    first, count = 0, len(offsets_M1) - 1
    while first < count:
        last = max(int(np.searchsorted(offsets_M1, offsets_M1[first] + BLOCK_ROWS, side="right")) - 1, first + 1)
        yield first, last
        first = last


def block_offsets(form: CodeForm, offsets_M1: Int64Array) -> Int64Array:
    """Where each list begins among the rows of the stored array, (M + 1,)."""
    if not form.is_packed:
        return offsets_M1
    return np.concatenate([[0], np.cumsum(form.num_blocks(np.diff(offsets_M1)))]).astype(np.int64)


@dataclass(frozen=True)
class StoredSearchCodes:
    """The search codes of an open part."""

    form: CodeForm
    array: VerifiedArray
    offsets_M1: Int64Array

    @cached_property
    def blocks_M1(self) -> Int64Array:
        """Where each list begins among the rows of the array."""
        return block_offsets(self.form, self.offsets_M1)

    @property
    def num_slots(self) -> int:
        """The places for codes in all blocks."""
        return len(self.array) * self.form.block_rows

    def rows(self, positions: Int64Array) -> AnyArray:
        """The codes (n, B), or vectors (n, D) where these are stored, at ascending positions."""
        if not self.form.is_packed or not len(positions):
            return self.array[positions].reshape(-1, self.form.width)
        list_n = np.searchsorted(self.offsets_M1, positions, side="right") - 1
        rank_n = positions - self.offsets_M1[list_n]
        block_n = self.blocks_M1[list_n] + rank_n // self.form.block_rows
        distinct, which_n = np.unique(block_n, return_inverse=True)
        codes = unpacked_codes(self.array[distinct], self.form)
        rows: AnyArray = codes[which_n * self.form.block_rows + rank_n % self.form.block_rows]
        return rows

    def positions_of(self, slots: Int64Array) -> Int64Array:
        """The position whose code is in each slot of the blocks, (n,) int64: slot `R * block + i` has row i of a block."""
        if not self.form.is_packed:
            return slots
        block_n = slots // self.form.block_rows
        list_n = np.searchsorted(self.blocks_M1, block_n, side="right") - 1
        rank_n = slots - self.blocks_M1[list_n] * self.form.block_rows
        return np.minimum(self.offsets_M1[list_n] + rank_n, self.offsets_M1[list_n + 1] - 1)


@lru_cache(maxsize=8)
def _packer(form: CodeForm) -> FaissObject:
    """The packer of FAISS for blocks of this form, which an index of one list has."""
    faiss, size = faiss_module(), form.quantized
    coarse = faiss.IndexFlat(size)
    if form.kind == "rabitq":
        index = faiss.IndexIVFRaBitQFastScan(coarse, size, 1, faiss.METRIC_L2, form.block_rows, True, form.bits)
    else:
        index = faiss.IndexIVFPQFastScan(coarse, size, 1, size, 4, faiss.METRIC_L2, form.block_rows)
    packer = faiss.downcast_InvertedLists(index.invlists).packer
    packer.kept_alive = index, coarse
    return packer


def packed_codes(codes_NB: AnyArray, form: CodeForm, sizes: Int64Array | None = None) -> AnyArray:
    """Blocks of the codes of lists that follow each other.

    Args:
        sizes: of the lists, none of which is empty; None: one list.
    """
    sizes = np.array([len(codes_NB)]) if sizes is None else sizes
    slots = form.num_blocks(sizes) * form.block_rows
    rank = np.arange(slots.sum()) - np.repeat(np.cumsum(slots) - slots, slots)
    filled = codes_NB[np.repeat(np.cumsum(sizes) - sizes, slots) + np.minimum(rank, np.repeat(sizes - 1, slots))]
    packed: AnyArray = np.zeros(len(filled) // form.block_rows, dtype=form.dtype)
    packer, pointer = _packer(form), faiss_module().swig_ptr
    sources, targets = (array.view(np.uint8).reshape(len(packed), -1) for array in (filled, packed))
    for source, target in zip(sources, targets, strict=True):
        packer.pack_all(pointer(source), pointer(target))
    return packed


def unpacked_codes(packed: AnyArray, form: CodeForm) -> ByteArray:
    """The codes (blocks * R, B) in blocks."""
    packer, pointer, rows = _packer(form), faiss_module().swig_ptr, form.block_rows
    codes_NB: ByteArray = np.zeros((len(packed) * rows, form.code_bytes), dtype=np.uint8)
    for block, source in enumerate(np.ascontiguousarray(packed).view(np.uint8).reshape(len(packed), -1)):
        packer.unpack_all(pointer(source), pointer(codes_NB[block * rows :]))
    return codes_NB
