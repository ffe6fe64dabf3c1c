"""Old rows that few new rows may be nearest to: found by the codes of a part, list by list, without any vector."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from retrodb.ann.codegen.near_codes import ListSpans, columns_of, mark_near, narrow
from retrodb.ann.part import Part
from retrodb.ann.reverse_join import NewRows
from retrodb.format.arrays import Float32Array, Int64Array
from retrodb.format.entries import Metric

_BLOCK_ROWS = 1 << 16


def near_rows(
    part: Part, new: NewRows, metric: Metric, bounds_of: Callable[[Int64Array], Float32Array], rows: range
) -> Int64Array:
    """The rows of a part to which a new row that is grouped under their list may be as near as their bound, unordered.

    Every such row is found, and few others.

    Args:
        bounds_of: gives the bounds (n,) of rows (n,) of the part.
        rows: that are looked at.
    """
    lists = np.flatnonzero(np.diff(new.groups.offsets_L1) > 0)
    starts, ends = part.positions_of_lists(lists)
    order_N = part.order_N.declared(starts, ends)
    spans = ListSpans(lists.astype(np.int32), starts.copy(), ends.copy())
    if rows != range(part.meta.rows):
        narrow(spans, order_N, rows.start, rows.stop)
    columns = columns_of(new.vectors_ND, part.centre_D, metric == "squared_l2")
    codes_ND, scales_N2 = (array.declared(spans.starts_P, spans.ends_P) for array in (part.codes_ND, part.scales_N2))
    found = [np.empty(0, np.int64)]
    for block in _blocks(spans):
        ranges = zip(block.starts_P.tolist(), block.ends_P.tolist(), strict=True)
        of_block = np.concatenate([order_N[start:end] for start, end in ranges])
        is_near = np.zeros(len(of_block), dtype=np.bool_)
        bounds = bounds_of(of_block)
        mark_near(block, new.groups, columns, codes_ND, scales_N2, bounds, metric == "squared_l2", is_near)
        found.append(of_block[is_near])
    return np.concatenate(found)


def _blocks(spans: ListSpans) -> Iterator[ListSpans]:
    """Lists with about `_BLOCK_ROWS` rows together, and no empty ones."""
    sizes = spans.ends_P - spans.starts_P
    filled = np.flatnonzero(sizes > 0)
    blocks = (np.cumsum(sizes[filled]) - sizes[filled]) // _BLOCK_ROWS
    for chosen in np.split(filled, np.flatnonzero(np.diff(blocks)) + 1):
        if len(chosen):
            yield ListSpans(spans.lists_P[chosen], spans.starts_P[chosen], spans.ends_P[chosen])
