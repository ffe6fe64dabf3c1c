"""Parts merged list by list: the rows keep their lists and codes, so nothing is trained, assigned or encoded again.

The rows of every list are in ascending order, as `build_part` writes them. So a merged part is bit for bit the one that a
single build of its rows gives.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.lib.format import open_memmap

from retrodb.ann import inverted_lists
from retrodb.ann.codebook import Codebook
from retrodb.ann.faiss_library import FaissIndex, faiss_module
from retrodb.ann.part import Part, PartMeta, create_store, finish_part, sort_by_list
from retrodb.errors import MismatchError
from retrodb.format.arrays import AnyArray, Int64Array
from retrodb.format.part_files import INDEX_FILE
from retrodb.store.verified_array import VerifiedArray

BLOCK_ROWS = 65_536  # copied at once: 65,536 * 384 dimensions * 1 byte = 25 MB of codes


def merge_parts(parts: Sequence[Part], merged_rows: Sequence[Int64Array], folder: Path) -> PartMeta:
    """Writes rows of parts as one part into an existing, empty folder. Memory: twice their search codes.

    Args:
        merged_rows: for every row of each part its row in the merged one, -1 to drop it; ascending within a part, and
            all together 0 .. N - 1.

    Raises:
        MismatchError: the parts are of different codebooks.
    """
    first = parts[0].meta
    if any(part.meta.codebook != first.codebook for part in parts):
        raise MismatchError("parts of different codebooks cannot be merged", remedy="Run 'retrodb index --retrain'")
    num_rows = sum(int((rows >= 0).sum()) for rows in merged_rows)
    meta = PartMeta(num_rows, first.dim, first.metric, first.num_lists, first.codebook)
    lists_NA = open_memmap(
        folder / "lists.npy", mode="w+", dtype=np.int32, shape=(num_rows, parts[0].lists_NA.shape[1])
    )
    _scatter([(lists_NA, [part.lists_NA for part in parts])], merged_rows)
    order_N, offsets_L1 = sort_by_list(lists_NA[:, 0], meta.num_lists)
    position_N = np.empty(num_rows, dtype=np.int64)
    position_N[order_N] = np.arange(num_rows)
    # From here on everything is in list order, in the parts as in the merged one.
    positions = [_in_list_order(part, rows, position_N) for part, rows in zip(parts, merged_rows, strict=True)]
    codes_ND, scales_N2 = create_store(folder, meta)
    stores = (codes_ND, [part.codes_ND for part in parts]), (scales_N2, [part.scales_N2 for part in parts])
    _scatter(stores, positions)
    index = _merged_index(parts, positions, order_N, offsets_L1)
    faiss_module().write_index(index, str(folder / INDEX_FILE))
    finish_part(folder, meta, order_N, offsets_L1, parts[0].centre_D)
    return meta


def _in_list_order(part: Part, rows: Int64Array, position_N: Int64Array) -> Int64Array:
    rows = rows[part.order_N.whole()]
    return np.where(rows >= 0, position_N[rows], -1)


def _scatter(
    arrays: Sequence[tuple[AnyArray, Sequence[VerifiedArray | AnyArray]]], targets: Sequence[Int64Array]
) -> None:
    """Copies the rows of each part's array to their targets in the merged one (-1: none), block by block."""
    for merged, sources in arrays:
        for source, target_N in zip(sources, targets, strict=True):
            for start in range(0, len(target_N), BLOCK_ROWS):
                target_B = target_N[start : start + BLOCK_ROWS]
                merged[target_B[target_B >= 0]] = source[start : start + BLOCK_ROWS][target_B >= 0]


def _merged_index(
    parts: Sequence[Part], positions: Sequence[Int64Array], order_N: Int64Array, offsets_L1: Int64Array
) -> FaissIndex:
    """The FAISS index of the merged rows."""
    index = parts[0].copy_of_index()
    index.reset()
    if Codebook(index).ivf is None:  # one list, whose vectors are their own codes
        vectors_ND = np.empty((len(order_N), index.d), dtype=np.float32)
        _scatter([(vectors_ND, [part.index.reconstruct_n(0, part.meta.rows) for part in parts])], positions)
        index.add(vectors_ND)
        return index
    codes_NB = np.empty((len(order_N), Codebook(index).ivf.code_size), dtype=np.uint8)
    for part, position_P in zip(parts, positions, strict=True):
        _scatter([(codes_NB, [inverted_lists.read_codes(part.index, part.offsets_L1)])], [position_P])
    inverted_lists.fill_lists(index, order_N, offsets_L1, codes_NB)
    return index
