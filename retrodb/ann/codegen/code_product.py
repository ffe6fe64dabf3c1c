"""Distances from products of 6-bit codes: the inner loop of the join, four times the rate of a float32 product on AVX2.

AVX2 multiplies 32 pairs of bytes and adds neighbouring products in one instruction (`vpmaddubsw`, unsigned by signed, into
16 bits). With 8-bit codes two products overflow 16 bits, and each pair of sums needs two more instructions. Codes of 6 bits
leave room for the `GROUP_DIMS / 4` = 8 sums of two products that 32 dimensions need: 8 * 2 * 62 * 31 = 30,752 < 2^15. So
16-bit sums stay in registers over 32 dimensions and are widened to 32 bits only then. All sums are exact integers: every
order, split and machine gives the same bits.

Layout: the codes of queries are rows (Q, D), unsigned (`QueryCodes`). The codes of columns are panels of `PANEL` columns,
signed, with four dimensions of a column next to each other: column c of panel p has dimension d at byte
`p * PANEL * D + ((d // 4) * PANEL + c) * 4 + d % 4`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from llvmlite import ir
from numba import types
from numpy.typing import NDArray

from retrodb.ann.codegen.compiled import compiled
from retrodb.ann.codegen.llvm import I32, I64, NumbaObject, declare, has_avx2, load, make_intrinsic, store, typed_code
from retrodb.ann.codegen.six_bit_codes import GROUP_DIMS
from retrodb.format.arrays import ByteArray, Float32Array, Int64Array

ROWS = 6  # queries of a tile: 6 x 2 sums, two registers of columns, one query and one product fill AVX2's 16 registers
PANEL = 16  # columns of a tile: two registers of 8 columns x 4 dimensions


class PanelColumns(NamedTuple):
    """Columns in panels, as the products read them; C is the number of columns with room for whole panels."""

    panels: NDArray[np.int8]  # (C * D,) in the layout above
    affine_3C: Float32Array  # norm, scale, and `LEVELS` times the sum of the codes, which the queries' offset adds


@compiled
def multiply_portable(
    queries_QD: ByteArray,
    rows_R: Int64Array,
    columns: PanelColumns,
    panel: int,
    weights_R: Float32Array,
    limits_R: Float32Array,
    distances_RC: Float32Array,
) -> int:
    """Distances of `ROWS` queries and the columns of one panel: the definition, and the code for other processors.

    Args:
        rows_R: numbers of queries; the first `ROWS` count.
        weights_R, limits_R: of these queries; a distance is `norm - weight * scale * product`.
        distances_RC: (ROWS, PANEL) float32; overwritten with the distances.

    Returns:
        Bit r is set when a distance of query r is within its limit: one branch for 16 columns.
    """
    dims = queries_QD.shape[1]
    first = panel * dims * PANEL
    is_close = 0
    for r in range(ROWS):
        for c in range(PANEL):
            total = np.int32(0)
            for d in range(dims):
                code = columns.panels[first + (d // 4 * PANEL + c) * 4 + d % 4]
                total += np.int32(queries_QD[rows_R[r], d]) * np.int32(code)
            norm, scale, sum_of_codes = columns.affine_3C[:, panel * PANEL + c]
            distances_RC[r, c] = norm - weights_R[r] * (scale * (np.float32(total) - sum_of_codes))
            is_close |= int(distances_RC[r, c] <= limits_R[r]) << r
    return is_close


@compiled
def multiply_avx2(
    queries_QD: ByteArray,
    rows_R: Int64Array,
    columns: PanelColumns,
    panel: int,
    weights_R: Float32Array,
    limits_R: Float32Array,
    distances_RC: Float32Array,
) -> int:
    """`multiply_portable` for processors with AVX2, bit for bit."""
    is_close: int = _multiply_avx2(
        queries_QD, rows_R, columns.panels, columns.affine_3C, panel, weights_R, limits_R, distances_RC
    )
    return is_close


multiply = multiply_avx2 if has_avx2() else multiply_portable

_BYTES = ir.VectorType(ir.IntType(8), 32)
_SHORTS = ir.VectorType(ir.IntType(16), 16)
_INTS = ir.VectorType(I32, 8)
_FLOATS = ir.VectorType(ir.FloatType(), 8)
_HALVES = range(PANEL // 8)  # of a panel: registers of 8 columns


def _typed_multiply(
    _context: NumbaObject,
    queries: NumbaObject,
    rows: NumbaObject,
    panels: NumbaObject,
    affine: NumbaObject,
    panel: NumbaObject,
    weights: NumbaObject,
    limits: NumbaObject,
    distances: NumbaObject,
) -> NumbaObject:
    return typed_code(types.int64, [queries, rows, panels, affine, panel, weights, limits, distances], _emit_tile)


_multiply_avx2 = make_intrinsic(_typed_multiply)
"""The product in LLVM's own language: nothing else keeps the 12 sums in registers."""


def _emit_tile(
    builder: ir.IRBuilder,
    queries: ir.Value,
    rows: ir.Value,
    panels: ir.Value,
    affine: ir.Value,
    panel: ir.Value,
    weights: ir.Value,
    limits: ir.Value,
    out: ir.Value,
) -> ir.Value:
    """The sums of products, written to where the distances go; then the distances, and the bits of the close queries."""
    dims = builder.extract_value(queries.shape, 1)
    columns = builder.gep(panels.data, [builder.mul(panel, builder.mul(dims, I64(PANEL)))])
    numbers = [builder.load(builder.gep(rows.data, [I64(row)])) for row in range(ROWS)]
    codes = [builder.gep(queries.data, [builder.mul(number, dims)]) for number in numbers]
    totals = [builder.gep(out.data, [I64(8 * register)]) for register in range(len(_HALVES) * ROWS)]
    _emit_sums(builder, dims, columns, codes, totals)
    terms = _column_terms(builder, affine, panel)
    is_close = I64(0)
    for row in range(ROWS):
        weight, limit = (_spread(builder, builder.load(builder.gep(a.data, [I64(row)]))) for a in (weights, limits))
        hits = [_emit_distances(builder, totals[2 * row + half], terms[half], weight, limit) for half in _HALVES]
        bits = builder.bitcast(builder.or_(*hits), ir.IntType(8))
        any_bit = builder.zext(builder.icmp_unsigned("!=", bits, ir.IntType(8)(0)), I64)
        is_close = builder.or_(is_close, builder.shl(any_bit, I64(row)))
    return is_close


def _emit_sums(
    builder: ir.IRBuilder, dims: ir.Value, columns: ir.Value, codes: list[ir.Value], totals: list[ir.Value]
) -> None:
    """A loop over groups of dimensions, and in it one over four dimensions a step, whose 16-bit sums stay in registers."""
    multiply_bytes = declare(builder, "llvm.x86.avx2.pmadd.ub.sw", _SHORTS, _BYTES)
    add_pairs = declare(builder, "llvm.x86.avx2.pmadd.wd", _INTS, _SHORTS)
    for total in totals:
        store(builder, ir.Constant(_INTS, [0] * 8), total)

    before = builder.block
    group, step, widen, done = (builder.append_basic_block(name) for name in ("group", "step", "widen", "done"))
    builder.branch(group)
    builder.position_at_end(group)
    start = builder.phi(I64)
    start.add_incoming(I64(0), before)
    stop = builder.add(start, I64(GROUP_DIMS))
    builder.branch(step)

    builder.position_at_end(step)
    dim = builder.phi(I64)
    dim.add_incoming(start, group)
    sums_16 = [builder.phi(_SHORTS) for _ in totals]
    quads = builder.gep(columns, [builder.mul(dim, I64(PANEL))])  # four dimensions of each column
    halves = [load(builder, builder.gep(quads, [I64(32 * half)]), _BYTES) for half in _HALVES]
    added = []
    for row, row_codes in enumerate(codes):
        query = _broadcast(builder, builder.gep(row_codes, [dim]))
        for half in _HALVES:
            added.append(builder.add(sums_16[2 * row + half], builder.call(multiply_bytes, [query, halves[half]])))
    next_dim = builder.add(dim, I64(4))
    dim.add_incoming(next_dim, step)
    for phi, value in zip(sums_16, added, strict=True):
        phi.add_incoming(ir.Constant(_SHORTS, [0] * 16), group)
        phi.add_incoming(value, step)
    builder.cbranch(builder.icmp_signed("<", next_dim, stop), step, widen)

    builder.position_at_end(widen)
    for total, value in zip(totals, added, strict=True):
        pairs = builder.call(add_pairs, [value, ir.Constant(_SHORTS, [1] * 16)])
        store(builder, builder.add(load(builder, total, _INTS), pairs), total)
    start.add_incoming(stop, widen)
    builder.cbranch(builder.icmp_signed("<", stop, dims), group, done)
    builder.position_at_end(done)


def _column_terms(builder: ir.IRBuilder, affine: ir.Value, panel: ir.Value) -> list[list[ir.Value]]:
    """For each half of the panel's columns their norms, scales and sums of codes."""
    num_columns = builder.extract_value(affine.shape, 1)
    first = builder.mul(panel, I64(PANEL))
    starts = [builder.add(first, builder.mul(num_columns, I64(term))) for term in range(3)]
    return [
        [load(builder, builder.gep(affine.data, [builder.add(start, I64(8 * half))]), _FLOATS) for start in starts]
        for half in _HALVES
    ]


def _emit_distances(
    builder: ir.IRBuilder, total: ir.Value, terms: list[ir.Value], weight: ir.Value, limit: ir.Value
) -> ir.Value:
    """Replaces eight sums by distances, and tells which of them are within the limit."""
    norms, scales, sums_of_codes = terms
    product = builder.fsub(builder.sitofp(load(builder, total, _INTS), _FLOATS), sums_of_codes)
    distances = builder.fsub(norms, builder.fmul(weight, builder.fmul(scales, product)))
    store(builder, distances, total)
    return builder.fcmp_ordered("<=", distances, limit)


def _spread(builder: ir.IRBuilder, value: ir.Value) -> ir.Value:
    one = builder.insert_element(ir.Constant(_FLOATS, ir.Undefined), value, I32(0))
    return builder.shuffle_vector(one, one, ir.Constant(_INTS, [0] * 8))


def _broadcast(builder: ir.IRBuilder, pointer: ir.Value) -> ir.Value:
    """Four dimensions of a query, repeated for each of 8 columns."""
    four = builder.insert_element(ir.Constant(_INTS, ir.Undefined), load(builder, pointer, I32), I32(0))
    eight = builder.shuffle_vector(four, four, ir.Constant(_INTS, [0] * 8))
    return builder.bitcast(eight, _BYTES)
