"""FAISS over lists that lie elsewhere in memory: one index of the codebook scans the lists of part after part.

FAISS reads lists of `OnDiskInvertedLists` through a table of (size, capacity, offset). Codes are at the address `base + offset`
and row numbers at `base + offset + code_size * capacity`. We leave the base and the file away, and count capacity in bytes:
offset is the address of a list's codes, and capacity the distance from there to its row numbers. So codes and row numbers lie in
files of their own, mapped by us, and FAISS copies neither. Blocks of fast-scan codes are read in the same way.

A scanner has its own table, and shares the coarse quantizer with the codebook. Threads take a scanner each.

Legend: L lists of the codebook, P lists that some query probes, Q queries, A lists of a query, W candidates.
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
        self.index = _copy_without(ivf, quantizer)
        self.index.ntotal = 1  # of no part; an index with none need not be searched
        self._lists = faiss.OnDiskInvertedLists()
        self._lists.nlist, self._lists.code_size = ivf.nlist, 1
        self._lists.lists.resize(ivf.nlist)
        self.index.invlists, self.index.own_invlists = self._lists, False
        numbers = (ctypes.c_int64 * (3 * ivf.nlist)).from_address(int(self._lists.lists.data().this))
        self.table_L3 = np.frombuffer(numbers, dtype=np.int64).reshape(-1, 3)  # size, capacity, offset


class ProbedLists:
    """Some queries with the lists that they probe, which are asked of one part after the other."""

    def __init__(
        self, scanner: ListScanner, queries: Float32Array, lists_QA: Int64Array, distances_QA: Float32Array
    ) -> None:
        """
        Args:
            lists_QA: the lists that each query probes, -1 where there are no more.
            distances_QA: of the queries and the centroids of these lists, as FAISS has them.
        """
        self._scanner, self._num_queries = scanner, len(queries)
        self._arrays = queries, lists_QA, distances_QA
        self._pointers = tuple(map(faiss_module().swig_ptr, self._arrays))
        self._unrestricted = _parameters(scanner.index, None, lists_QA.shape[1])
        distinct: Int64Array = (
            np.sort(lists_QA[0]) if len(queries) == 1 else np.unique(lists_QA)
        )  # one query repeats none
        self.lists_P = distinct[int(np.searchsorted(distinct, 0)) :]  # all of them, ascending

    def scan(self, table_P3: Int64Array, width: int, selector: FaissObject) -> tuple[Int64Array, Float32Array]:
        """The nearest rows (Q, W) int64 of a part, -1 where there are no more, and their distances as FAISS has them.

        Args:
            table_P3: of each probed list its number of rows, the distance from its codes to its row numbers, and the address
                of its codes. They stay mapped during the call.
            selector: a FAISS row filter, or None.
        """
        scanner, (x, lists, coarse) = self._scanner, self._pointers
        shape = self._num_queries, width
        distances_QW, rows_QW = np.empty(shape, np.float32), np.empty(shape, np.int64)
        parameters = self._unrestricted
        if selector is not None:
            parameters = _parameters(scanner.index, selector, self._arrays[1].shape[1])
        scanner.table_L3[self.lists_P] = table_P3
        distances, rows = map(faiss_module().swig_ptr, (distances_QW, rows_QW))
        # The Python wrapper refuses parameters; the method below it takes them.
        scanner.index.search_preassigned_c(
            self._num_queries, x, width, lists, coarse, distances, rows, False, parameters
        )
        return rows_QW, distances_QW


class ListScanners:
    """The scanners of a codebook: as many as threads search at once."""

    def __init__(self, ivf: FaissIndex, quantizer: FaissIndex) -> None:
        self._ivf, self._quantizer = ivf, quantizer
        self._lock = Lock()
        self._free: list[ListScanner] = []

    @contextmanager
    def probing(self, queries: Float32Array, lists_QA: Int64Array, distances_QA: Float32Array) -> Iterator[ProbedLists]:
        """A scanner for the calling thread, with its queries. Arguments: see `ProbedLists`."""
        with self._lock:
            scanner = self._free.pop() if self._free else ListScanner(self._ivf, self._quantizer)
        probed = ProbedLists(scanner, queries, lists_QA, distances_QA)
        try:
            yield probed
        finally:
            scanner.table_L3[probed.lists_P, 0] = 0  # no list of a part that may be unmapped
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
