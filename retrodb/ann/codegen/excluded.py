"""Whether a query forbids a neighbour: its intervals of ids and its exclusion keys, inside the kernels."""

from __future__ import annotations

from retrodb.ann.codegen.compiled import compiled
from retrodb.ann.exclusion import NO_KEY, QueryKeys
from retrodb.format.arrays import Int64Array


def is_excluded_portable(row: int, id_: int, column: int, keys: QueryKeys, column_keys_JC: Int64Array) -> bool:
    """Whether an id is in an interval of a query, or its column has a key of the query: the definition of `is_excluded`."""
    bounds = keys.bounds_I2[keys.bound_offsets_Q1[row] : keys.bound_offsets_Q1[row + 1]]
    return any(first <= id_ < end for first, end in bounds.tolist()) or any(
        key != NO_KEY and key in keys.keys_M[offsets_Q1[row] : offsets_Q1[row + 1]]
        for key, offsets_Q1 in zip(column_keys_JC[:, column], keys.offsets_JQ1, strict=True)
    )


@compiled
def is_excluded(row: int, id_: int, column: int, keys: QueryKeys, column_keys_JC: Int64Array) -> bool:
    """Whether an id is in an interval of a query, or its column has a key of the query; inside kernels."""
    return is_in_interval(row, id_, keys) or has_excluded_key(row, column, keys, column_keys_JC)


@compiled
def is_in_interval(row: int, id_: int, keys: QueryKeys) -> bool:
    """Whether an id is in an interval of a query."""
    for position in range(keys.bound_offsets_Q1[row], keys.bound_offsets_Q1[row + 1]):
        if keys.bounds_I2[position, 0] <= id_ and id_ < keys.bounds_I2[position, 1]:
            return True
    return False


@compiled
def has_excluded_key(row: int, column: int, keys: QueryKeys, column_keys_JC: Int64Array) -> bool:
    """Whether a column has a key of a query."""
    offsets_JQ1, keys_M = keys.offsets_JQ1, keys.keys_M
    for kind in range(offsets_JQ1.shape[0]):
        key = column_keys_JC[kind, column]
        if key == NO_KEY:
            continue
        for position in range(offsets_JQ1[kind, row], offsets_JQ1[kind, row + 1]):
            if keys_M[position] == key:
                return True
    return False
