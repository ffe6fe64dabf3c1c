"""FAISS over lists that lie elsewhere in memory: one index of the codebook scans the lists of part after part.

FAISS reads lists of `OnDiskInvertedLists` through a table of (size, capacity, offset). Codes are at the address `base + offset`
and row numbers at `base + offset + code_size * capacity`. We leave the base and the file away, and count capacity in bytes:
offset is the address of a list's codes, and capacity the distance from there to its row numbers. So codes and row numbers lie in
files of their own, mapped by us, and FAISS copies neither. Blocks of fast-scan codes are read in the same way.

A scanner has its own table, and shares the coarse quantizer with the codebook. Threads take a scanner each.

Legend: L lists of the codebook, P lists of a part, Q queries, A probed lists, W candidates.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

import numpy as np

from retrodb.ann.faiss_library import FaissIndex, FaissObject, faiss_module
from retrodb.format.arrays import Float32Array, Int64Array


class ListScanner:
    """One index without lists of its own. For one thread at a time."""

    def __init__(self, ivf: FaissIndex, quantizer: FaissIndex) -> None:
        """
        Args:
            ivf: of the codebook; it is copied.
            quantizer: of the codebook; it is shared.
        """
        faiss = faiss_module()
        self._index = _copy_without(ivf, quantizer)
        self._lists = faiss.OnDiskInvertedLists()
        self._lists.nlist, self._lists.code_size = ivf.nlist, 1
        self._lists.lists.resize(ivf.nlist)
        self._index.invlists, self._index.own_invlists = self._lists, False
        numbers = (ctypes.c_uint64 * (3 * ivf.nlist)).from_address(int(self._lists.lists.data().this))
        self._table_L3 = np.frombuffer(numbers, dtype=np.uint64).reshape(-1, 3)  # size, capacity, offset

    def search(
        self,
        queries: Float32Array,
        width: int,
        lists_QA: Int64Array,
        distances_QA: Float32Array,
        in_memory: tuple[Int64Array, Int64Array, Int64Array, Int64Array],
        selector: FaissObject,
    ) -> tuple[Int64Array, Float32Array]:
        """The nearest rows (Q, W) int64, -1 where there are no more, and their distances as FAISS has them.

        Args:
            lists_QA: the lists that each query probes, and its distances to their centroids.
            in_memory: lists, their sizes, and the addresses of their codes and of their rows, (P,) each. Other lists are empty.
            selector: a FAISS row filter, or None.
        """
        faiss = faiss_module()
        lists_P, sizes_P, codes_P, rows_P = in_memory
        distances_QW, rows_QW = np.empty((len(queries), width), np.float32), np.empty((len(queries), width), np.int64)
        x, lists, coarse, distances, rows = map(
            faiss.swig_ptr, (queries, lists_QA, distances_QA, distances_QW, rows_QW)
        )
        parameters = _parameters(self._index, selector, lists_QA.shape[1])
        self._index.ntotal = int(sizes_P.sum())
        self._table_L3[lists_P] = np.stack([sizes_P, rows_P - codes_P, codes_P], axis=1).view(np.uint64)
        try:
            # The Python wrapper refuses parameters; the method below it takes them.
            self._index.search_preassigned_c(len(queries), x, width, lists, coarse, distances, rows, False, parameters)
        finally:
            self._table_L3[lists_P, 0] = 0
        return rows_QW, distances_QW


class ListScanners:
    """The scanners of a codebook: as many as threads search at once."""

    def __init__(self, ivf: FaissIndex, quantizer: FaissIndex) -> None:
        self._ivf, self._quantizer = ivf, quantizer
        self._lock = Lock()
        self._free: list[ListScanner] = []

    @contextmanager
    def scanner(self) -> Iterator[ListScanner]:
        """A scanner for the calling thread."""
        with self._lock:
            scanner = self._free.pop() if self._free else ListScanner(self._ivf, self._quantizer)
        try:
            yield scanner
        finally:
            self._free.append(scanner)


def _copy_without(ivf: FaissIndex, quantizer: FaissIndex) -> FaissIndex:
    """A copy of an index that shares its quantizer and has no lists.

    FAISS copies an index with all that it has, so both are exchanged while it does.
    """
    faiss = faiss_module()
    lists, none = ivf.invlists, faiss.IndexFlat(ivf.d)
    ivf.quantizer, ivf.invlists = none, None
    try:
        copy = faiss.clone_index(ivf)
    finally:
        ivf.quantizer, ivf.invlists = quantizer, lists
    copy.quantizer.this.own(True)  # the copy of the stand-in, which is deleted here
    copy.quantizer, copy.own_fields = quantizer, False
    return copy


def _parameters(index: FaissIndex, selector: FaissObject, nprobe: int) -> FaissObject:
    """Search parameters; one-bit codes have a class of their own, whose defaults differ from the index's."""
    faiss = faiss_module()
    if isinstance(index, faiss.IndexIVFRaBitQ | faiss.IndexIVFRaBitQFastScan):
        return faiss.IVFRaBitQSearchParameters(sel=selector, nprobe=nprobe, qb=index.qb)
    return faiss.SearchParametersIVF(sel=selector, nprobe=nprobe)
