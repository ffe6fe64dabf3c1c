"""Whether a query forbids a neighbour: the exclusion keys, inside the kernels."""

from __future__ import annotations

from retrodb.ann.codegen.compiled import compiled
from retrodb.ann.exclusion import NO_KEY, QueryKeys
from retrodb.format.arrays import Int64Array


def is_excluded_portable(row: int, column: int, keys: QueryKeys, column_keys_JC: Int64Array) -> bool:
    """Whether a column has one of a query's keys of the same kind: the definition of `is_excluded`."""
    return any(
        key != NO_KEY and key in keys.keys_M[offsets_Q1[row] : offsets_Q1[row + 1]]
        for key, offsets_Q1 in zip(column_keys_JC[:, column], keys.offsets_JQ1, strict=True)
    )


@compiled
def is_excluded(row: int, column: int, keys: QueryKeys, column_keys_JC: Int64Array) -> bool:
    """Whether a column has one of a query's keys of the same kind; inside kernels."""
    offsets_JQ1, keys_M = keys
    for kind in range(offsets_JQ1.shape[0]):
        key = column_keys_JC[kind, column]
        if key == NO_KEY:
            continue
        for position in range(offsets_JQ1[kind, row], offsets_JQ1[kind, row + 1]):
            if keys_M[position] == key:
                return True
    return False
