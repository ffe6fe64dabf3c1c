"""Index parts: immutable folders of files over one run of vectors, all under one codebook.

====================  ===========================  ===========================================================
file                  dtype, shape                 holds
====================  ===========================  ===========================================================
index.faiss           FAISS                        an ordinary index; its ids are the part's rows
lists.npy             int32 (N, A)                 each vector's nearest lists by closeness; the first is its own
order.npy             int64 (N,)                   rows sorted by (list, row)
offsets.npy           int64 (L + 1,)               list l is order[offsets[l]:offsets[l + 1]]
codes.npy             int8 (N, D)                  vectors in that order; value = code * scale
scales.npy            float32 (N, 2)               in that order: scale, squared length of the vector
part.json                                          rows, dimension, metric, codebook digest
====================  ===========================  ===========================================================
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

from retrodb.ann.codebook import Codebook, faiss_module, one_faiss_thread
from retrodb.ann.metric import FloatArray, Int64Array, Metric, Vectors, check_vectors
from retrodb.errors import DamagedFileError, MismatchError, MissingFileError

INDEX_FILE = "index.faiss"
META_FILE = "part.json"
ARRAY_FILES = ("lists", "order", "offsets", "codes", "scales")
PART_FILES = (INDEX_FILE, META_FILE, *(f"{name}.npy" for name in ARRAY_FILES))
LISTS_KEPT = 32  # nearest lists stored per vector: 128 bytes, and enough for recall 0.95 by the measured curve
BLOCK_ROWS = 16_384


@dataclass(frozen=True)
class PartMeta:
    """What `part.json` says."""

    rows: int
    dim: int
    metric: Metric
    num_lists: int
    codebook: str  # its digest


@dataclass(frozen=True)
class Part:
    """An open part, memory-mapped."""

    folder: Path
    meta: PartMeta
    lists_NA: NDArray[np.int32]
    order_N: Int64Array
    offsets_L1: Int64Array
    codes_ND: NDArray[np.int8]  # in list order
    scales_N2: FloatArray  # in list order

    @cached_property
    def index(self) -> Any:
        """The FAISS index, opened at first use; memory-mapped except for fast-scan codes, which FAISS cannot map."""
        return _read_index(self.folder, memory_map=True)


def build_part(
    vectors_ND: Vectors, codebook: Codebook, folder: Path, lists_kept: int = LISTS_KEPT, threads: int = 1
) -> PartMeta:
    """Writes a part for these vectors into an existing, empty folder.

    Memory is bounded by the FAISS codes and one block of vectors.

    Raises:
        MismatchError: another dimension than the codebook's.
        InputError: NaN or infinity; names the row.
    """
    num_rows, kept = len(vectors_ND), min(lists_kept, codebook.num_lists)
    meta = PartMeta(num_rows, codebook.dim, codebook.metric, codebook.num_lists, codebook.digest)
    lists_NA = np.empty((num_rows, kept), dtype=np.int32)
    faiss = faiss_module()
    index = faiss.clone_index(codebook.index)
    with one_faiss_thread():
        for start in range(0, num_rows, BLOCK_ROWS):
            block = check_vectors(vectors_ND[start : start + BLOCK_ROWS], meta.dim, start, "vectors")
            lists_NA[start : start + len(block)] = codebook.nearest_lists(block, kept, threads)
            _add(Codebook(index), block, start, lists_NA[start : start + len(block), 0])
    faiss.write_index(index, str(folder / INDEX_FILE))
    order_N, offsets_L1 = _sort_by_list(lists_NA, meta.num_lists)
    codes_ND, scales_N2 = _create_store(folder, meta)
    for start in range(0, num_rows, BLOCK_ROWS):
        rows = order_N[start : start + BLOCK_ROWS]
        codes, scales = quantize(np.asarray(vectors_ND[rows], dtype=np.float32))
        codes_ND[start : start + len(rows)], scales_N2[start : start + len(rows)] = codes, scales
    _finish(folder, meta, lists_NA, order_N, offsets_L1, codes_ND, scales_N2)
    return meta


def _add(codebook: Codebook, block: FloatArray, first_row: int, lists_B: NDArray[np.int32]) -> None:
    """Adds a block under the lists that `lists.npy` names."""
    faiss = faiss_module()
    if codebook.ivf is None or isinstance(codebook.ivf, faiss.IndexIVFFastScan):
        # Fast-scan lists are packed by `add` alone; giving it lists corrupts them without an error (faiss 1.15.1).
        codebook.index.add(block)
        return
    rotated, ids = codebook.transform(block), np.arange(first_row, first_row + len(block))
    lists = lists_B.astype(np.int64)
    codebook.ivf.add_core(len(block), faiss.swig_ptr(rotated), faiss.swig_ptr(ids), faiss.swig_ptr(lists))
    codebook.index.ntotal = codebook.ivf.ntotal


def quantize(vectors_ND: FloatArray) -> tuple[NDArray[np.int8], FloatArray]:
    """Symmetric int8 codes with one scale a vector, and (scale, squared length) as (N, 2) float32."""
    scales_N = np.abs(vectors_ND).max(axis=1, initial=0) / np.float32(127)
    divisors_N = np.where(scales_N > 0, scales_N, np.float32(1))
    codes_ND = np.rint(vectors_ND / divisors_N[:, None]).astype(np.int8)
    return codes_ND, np.stack([scales_N, (vectors_ND**2).sum(axis=1)], axis=1).astype(np.float32)


def _sort_by_list(lists_NA: NDArray[np.int32], num_lists: int) -> tuple[Int64Array, Int64Array]:
    own_N = lists_NA[:, 0]
    offsets_L1 = np.concatenate([[0], np.cumsum(np.bincount(own_N, minlength=num_lists))])
    return np.argsort(own_N, kind="stable"), offsets_L1.astype(np.int64)


def _create_store(folder: Path, meta: PartMeta) -> tuple[NDArray[np.int8], FloatArray]:
    codes = open_memmap(folder / "codes.npy", mode="w+", dtype=np.int8, shape=(meta.rows, meta.dim))
    return codes, open_memmap(folder / "scales.npy", mode="w+", dtype=np.float32, shape=(meta.rows, 2))


def _finish(
    folder: Path,
    meta: PartMeta,
    lists_NA: NDArray[np.int32],
    order_N: Int64Array,
    offsets_L1: Int64Array,
    codes_ND: Any,
    scales_N2: Any,
) -> None:
    codes_ND.flush()
    scales_N2.flush()
    np.save(folder / "lists.npy", lists_NA)
    np.save(folder / "order.npy", order_N)
    np.save(folder / "offsets.npy", offsets_L1)
    (folder / META_FILE).write_text(json.dumps(asdict(meta), sort_keys=True) + "\n", encoding="utf-8")


def open_part(folder: Path) -> Part:
    """Opens a part whose digests the caller has verified.

    Raises:
        MissingFileError: a file is not there.
        DamagedFileError: a file cannot be read, or files do not belong together.
    """
    for name in PART_FILES:
        if not (folder / name).is_file():
            raise MissingFileError("file of an index part is missing", where=str(folder / name), remedy=_REBUILD)
    try:
        meta = PartMeta(**json.loads((folder / META_FILE).read_text(encoding="utf-8")))
        arrays = [np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in ARRAY_FILES]
    except (ValueError, TypeError) as error:
        raise DamagedFileError(f"not an index part ({error})", where=str(folder), remedy=_REBUILD) from error
    part = Part(folder, meta, *arrays)
    shapes = (part.order_N.shape, part.offsets_L1.shape, part.codes_ND.shape, part.scales_N2.shape)
    wanted = ((meta.rows,), (meta.num_lists + 1,), (meta.rows, meta.dim), (meta.rows, 2))
    if shapes != wanted or len(part.lists_NA) != meta.rows:
        raise DamagedFileError("files of different parts are mixed", where=str(folder), remedy=_REBUILD)
    return part


_REBUILD = "Run 'retrodb index --retrain', which builds all parts of the space from its vectors"


def _read_index(folder: Path, memory_map: bool) -> Any:
    faiss = faiss_module()
    flags = faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY if memory_map else 0
    path = str(folder / INDEX_FILE)
    try:
        return faiss.read_index(path, flags)
    except RuntimeError as error:
        raise DamagedFileError("FAISS cannot read this index", where=path, remedy=_REBUILD) from error


def merge_parts(parts: Sequence[Part], folder: Path) -> PartMeta:
    """Writes the parts' rows, one after the other, as one part; the same answers, and but for the padding in
    fast-scan lists the same bytes, as `build_part` gives for all rows at once.

    Raises:
        MismatchError: the parts are of different codebooks.
    """
    first = parts[0].meta
    if any(part.meta.codebook != first.codebook for part in parts):
        raise MismatchError("parts of different codebooks cannot be merged", remedy="Run 'retrodb index --retrain'")
    first_rows = np.concatenate([[0], np.cumsum([part.meta.rows for part in parts])])
    meta = PartMeta(int(first_rows[-1]), first.dim, first.metric, first.num_lists, first.codebook)
    index = _read_index(parts[0].folder, memory_map=False)
    for part, first_row in zip(parts[1:], first_rows[1:-1].tolist(), strict=True):
        index.merge_from(_read_index(part.folder, memory_map=False), 0 if first.num_lists == 1 else first_row)
    faiss_module().write_index(index, str(folder / INDEX_FILE))
    lists_NA = np.concatenate([part.lists_NA for part in parts])
    order_N, offsets_L1 = _sort_by_list(lists_NA, meta.num_lists)
    codes_ND, scales_N2 = _create_store(folder, meta)
    for part, start, stop in zip(parts, first_rows[:-1], first_rows[1:], strict=True):
        # Both orders are by (list, row), so a part's rows keep their order among themselves.
        places = np.flatnonzero((order_N >= start) & (order_N < stop))
        codes_ND[places], scales_N2[places] = part.codes_ND, part.scales_N2
    _finish(folder, meta, lists_NA, order_N, offsets_L1, codes_ND, scales_N2)
    return meta
