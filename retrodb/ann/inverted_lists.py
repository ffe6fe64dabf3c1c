"""The inverted lists of a FAISS index, filled from and read into plain codes.

The `add` of FAISS assigns vectors again, by a product whose bits depend on the batch. Its `add_core`, which takes lists,
corrupts a fast-scan index without an error (faiss 1.15.1). So vectors are encoded under the lists that we keep, and whole lists
are copied into the index in ascending order of rows, which is the order in which FAISS then breaks ties.

Legend: N vectors by (list, row), B bytes of a search code, L lists.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from retrodb.ann.codebook import Codebook
from retrodb.ann.faiss_library import FaissIndex, FaissObject, faiss_module
from retrodb.format.arrays import ByteArray, Float32Array, Int32Array, Int64Array


def search_codes(rotated_ND: Float32Array, list_N: Int32Array, codebook: Codebook) -> ByteArray:
    """The search codes (N, B) of vectors in the space of the centroids, under their lists."""
    faiss = faiss_module()
    codes_NB: ByteArray = np.zeros((len(rotated_ND), codebook.ivf.code_size), dtype=np.uint8)
    vectors, lists = np.ascontiguousarray(rotated_ND), list_N.astype(np.int64)
    codebook.ivf.encode_vectors(len(vectors), *map(faiss.swig_ptr, (vectors, lists, codes_NB)), False)
    return codes_NB


def fill_lists(index: FaissIndex, rows_N: Int64Array, offsets_L1: Int64Array, codes_NB: ByteArray) -> None:
    """Fills the lists of an empty index: list l takes positions `offsets[l]` to `offsets[l + 1]`."""
    faiss, ivf = faiss_module(), Codebook(index).ivf
    lists, packer = _lists_of(ivf)
    for list_ in np.flatnonzero(np.diff(offsets_L1)).tolist():
        start, stop = offsets_L1[list_ : list_ + 2].tolist()
        codes = np.ascontiguousarray(codes_NB[start:stop])
        if packer is not None:
            blocks = -(-len(codes) // packer.nvec)
            padded: ByteArray = np.zeros((blocks * packer.nvec, packer.code_size), dtype=np.uint8)
            padded[: len(codes)] = codes
            codes = np.zeros(blocks * packer.block_size, dtype=np.uint8)
            for flat, block in _blocks(padded, codes, packer):
                packer.pack_all(flat, block)
        lists.add_entries(list_, stop - start, *map(faiss.swig_ptr, (np.ascontiguousarray(rows_N[start:stop]), codes)))
    ivf.ntotal = index.ntotal = len(rows_N)


def read_codes(index: FaissIndex, offsets_L1: Int64Array) -> ByteArray:
    """The search codes (N, B) of all lists, one list after the other."""
    faiss, ivf = faiss_module(), Codebook(index).ivf
    lists, packer = _lists_of(ivf)
    codes_NB: ByteArray = np.empty((int(offsets_L1[-1]), ivf.code_size), dtype=np.uint8)
    for list_ in np.flatnonzero(np.diff(offsets_L1)).tolist():
        start, stop = offsets_L1[list_ : list_ + 2].tolist()
        if packer is None:
            codes = faiss.rev_swig_ptr(lists.get_codes(list_), (stop - start) * ivf.code_size)
            codes_NB[start:stop] = codes.reshape(stop - start, -1)
            continue
        blocks = -(-(stop - start) // packer.nvec)
        packed = faiss.rev_swig_ptr(lists.get_codes(list_), blocks * packer.block_size)
        padded: ByteArray = np.empty((blocks * packer.nvec, packer.code_size), dtype=np.uint8)
        for flat, block in _blocks(padded, packed, packer):
            packer.unpack_all(block, flat)
        codes_NB[start:stop] = padded[: stop - start]
    return codes_NB


def stored_rows(index: FaissIndex) -> ByteArray | Float32Array:
    """The N rows of an index, list by list: search codes (N, B) uint8, or float32 vectors (N, D) where it is flat."""
    ivf = Codebook(index).ivf
    if ivf is None:
        vectors_ND: Float32Array = index.reconstruct_n(0, index.ntotal)
        return vectors_ND
    sizes = [ivf.invlists.list_size(list_) for list_ in range(ivf.nlist)]
    return read_codes(index, np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)]))


def _lists_of(ivf: FaissIndex) -> tuple[FaissObject, FaissObject]:
    """The lists, and the packer of vectors into blocks where they are interleaved (fast-scan), else None."""
    faiss = faiss_module()
    lists = faiss.downcast_InvertedLists(ivf.invlists)
    return lists, lists.packer if isinstance(lists, faiss.BlockInvertedLists) else None


def _blocks(codes: ByteArray, packed: ByteArray, packer: FaissObject) -> Iterator[tuple[FaissObject, FaissObject]]:
    """Pointers to the codes of each block's vectors, and to the block."""
    faiss, nvec, size = faiss_module(), packer.nvec, packer.block_size
    for block in range(len(codes) // nvec):
        yield faiss.swig_ptr(codes[block * nvec :]), faiss.swig_ptr(packed[block * size :])
