"""Inner products of 6-bit codes: the inner loop of the join, four times the rate of a float32 product on AVX2.

AVX2 multiplies 32 pairs of bytes and adds neighbours in one instruction (`vpmaddubsw`, unsigned by signed, into 16 bits).
With full bytes two such sums overflow and each needs two instructions more. Codes of 6 bits leave room for 8 of them:
8 * 2 * 62 * 31 < 2^15. So 16-bit sums are kept in registers over 32 dimensions and only then widened to 32 bits. All
sums are exact integers: every order, split and machine gives the same bits, and `multiply_portable` is the plain
definition, which serves machines without AVX2.

DocumentLayout: the codes of queries are rows (Q, D), unsigned, with an offset of 31. The codes of the database are panels of
`PANEL` columns, signed, four dimensions of a column side by side: byte ((d // 4) * PANEL + c) * 4 + d % 4. D is padded
with zeros to a multiple of `GROUP_DIMS`.
"""

from __future__ import annotations

from typing import Any

import llvmlite.binding
import numba
import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from retrodb.ann.kernels import compiled

LEVELS = 31  # codes are -31 .. 31
ROWS = 6  # of a tile: 6 x 2 sums, 2 columns' registers, a query's and a product fill the 16 registers of AVX2
PANEL = 16  # columns of a tile: two registers of 8 columns x 4 dimensions
GROUP_DIMS = 32  # dimensions between two widenings

_I32, _I64 = ir.IntType(32), ir.IntType(64)
_BYTES = ir.VectorType(ir.IntType(8), 32)
_SHORTS = ir.VectorType(ir.IntType(16), 16)
_INTS = ir.VectorType(_I32, 8)
_FLOATS = ir.VectorType(ir.FloatType(), 8)


def padded_dims(dim: int) -> int:
    """Dimensions of codes for vectors of `dim`."""
    return -(-dim // GROUP_DIMS) * GROUP_DIMS


def has_avx2() -> bool:
    """Whether numba compiles for a processor with AVX2."""
    chosen = numba.config.CPU_NAME or numba.config.CPU_FEATURES  # type: ignore[attr-defined]
    return not chosen and bool(llvmlite.binding.get_host_cpu_features().get("avx2"))


def _emit_multiply(
    _context: Any, queries: Any, rows: Any, panels: Any, affine: Any, panel: Any, weights: Any, limits: Any, out: Any
) -> Any:
    signature = types.int64(queries, rows, panels, affine, panel, weights, limits, out)

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        arrays = [
            context.make_array(kind)(context, builder, value) if isinstance(kind, types.Array) else value
            for kind, value in zip(signature.args, arguments, strict=True)
        ]
        return _emit_tile(builder, *arrays)

    return signature, emit


_multiply_avx2: Any = intrinsic(_emit_multiply)
"""`multiply_portable` in LLVM's own language: nothing else keeps the 12 sums in registers."""


def _emit_tile(
    builder: Any, queries: Any, rows: Any, panels: Any, affine: Any, panel: Any, weights: Any, limits: Any, out: Any
) -> Any:
    multiply_bytes = _declared(builder, "llvm.x86.avx2.pmadd.ub.sw", _SHORTS, _BYTES)
    add_pairs = _declared(builder, "llvm.x86.avx2.pmadd.wd", _INTS, _SHORTS)
    dims = builder.extract_value(queries.shape, 1)
    columns = builder.gep(panels.data, [builder.mul(panel, builder.mul(dims, _I64(PANEL)))])
    numbers = [builder.load(builder.gep(rows.data, [_I64(r)])) for r in range(ROWS)]
    codes = [builder.gep(queries.data, [builder.mul(number, dims)]) for number in numbers]
    totals = [builder.gep(out.data, [_I64(8 * place)]) for place in range(2 * ROWS)]
    for total in totals:
        _store(builder, ir.Constant(_INTS, [0] * 8), total)

    before = builder.block
    group, step, widen, done = (builder.append_basic_block(name) for name in ("group", "step", "widen", "done"))
    builder.branch(group)
    builder.position_at_end(group)
    start = builder.phi(_I64)
    start.add_incoming(_I64(0), before)
    stop = builder.add(start, _I64(GROUP_DIMS))
    builder.branch(step)

    builder.position_at_end(step)
    dim = builder.phi(_I64)
    dim.add_incoming(start, group)
    sums_16 = [builder.phi(_SHORTS) for _ in totals]
    at = builder.gep(columns, [builder.mul(dim, _I64(PANEL))])
    halves = [_load(builder, builder.gep(at, [_I64(32 * half)]), _BYTES) for half in range(2)]
    added = []
    for row in range(ROWS):
        query = _broadcast(builder, builder.gep(codes[row], [dim]))
        for half in range(2):
            added.append(builder.add(sums_16[2 * row + half], builder.call(multiply_bytes, [query, halves[half]])))
    next_dim = builder.add(dim, _I64(4))
    dim.add_incoming(next_dim, step)
    for phi, value in zip(sums_16, added, strict=True):
        phi.add_incoming(ir.Constant(_SHORTS, [0] * 16), group)
        phi.add_incoming(value, step)
    builder.cbranch(builder.icmp_signed("<", next_dim, stop), step, widen)

    builder.position_at_end(widen)
    for total, value in zip(totals, added, strict=True):
        pairs = builder.call(add_pairs, [value, ir.Constant(_SHORTS, [1] * 16)])
        _store(builder, builder.add(_load(builder, total, _INTS), pairs), total)
    start.add_incoming(stop, widen)
    builder.cbranch(builder.icmp_signed("<", stop, dims), group, done)
    builder.position_at_end(done)
    affine_3 = _column_terms(builder, affine, panel)
    is_close = _I64(0)
    for row in range(ROWS):
        weight, limit = (_spread(builder, builder.load(builder.gep(a.data, [_I64(row)]))) for a in (weights, limits))
        hits = [_emit_distances(builder, totals[2 * row + half], affine_3[half], weight, limit) for half in range(2)]
        bits = builder.bitcast(builder.or_(*hits), ir.IntType(8))
        any_bit = builder.zext(builder.icmp_unsigned("!=", bits, ir.IntType(8)(0)), _I64)
        is_close = builder.or_(is_close, builder.shl(any_bit, _I64(row)))
    return is_close


def _column_terms(builder: Any, affine: Any, panel: Any) -> list[list[Any]]:
    """For each half of the panel's columns their norms, scales and sums of codes."""
    columns = builder.extract_value(affine.shape, 1)
    first = builder.mul(panel, _I64(PANEL))
    places = [builder.add(first, builder.mul(columns, _I64(term))) for term in range(3)]
    return [
        [_load(builder, builder.gep(affine.data, [builder.add(at, _I64(8 * half))]), _FLOATS) for at in places]
        for half in range(2)
    ]


def _emit_distances(builder: Any, total: Any, terms: list[Any], weight: Any, limit: Any) -> Any:
    """Turns eight sums into distances where they lie, and tells which are within the limit."""
    norms, scales, sums_of_codes = terms
    product = builder.fsub(builder.sitofp(_load(builder, total, _INTS), _FLOATS), sums_of_codes)
    distances = builder.fsub(norms, builder.fmul(weight, builder.fmul(scales, product)))
    _store(builder, distances, total)
    return builder.fcmp_ordered("<=", distances, limit)


def _spread(builder: Any, value: Any) -> Any:
    one = builder.insert_element(ir.Constant(_FLOATS, ir.Undefined), value, _I32(0))
    return builder.shuffle_vector(one, one, ir.Constant(_INTS, [0] * 8))


def _declared(builder: Any, name: str, result: Any, operand: Any) -> Any:
    function = ir.FunctionType(result, [operand, operand])
    return cgutils.get_or_insert_function(builder.module, function, name)  # type: ignore[no-untyped-call]


def _load(builder: Any, pointer: Any, kind: Any) -> Any:
    value = builder.load(builder.bitcast(pointer, kind.as_pointer()))
    value.align = 1
    return value


def _store(builder: Any, value: Any, pointer: Any) -> None:
    builder.store(value, builder.bitcast(pointer, value.type.as_pointer())).align = 1


def _broadcast(builder: Any, pointer: Any) -> Any:
    """Four dimensions of a query, beside each of 8 columns."""
    four = builder.insert_element(ir.Constant(_INTS, ir.Undefined), _load(builder, pointer, _I32), _I32(0))
    eight = builder.shuffle_vector(four, four, ir.Constant(_INTS, [0] * 8))
    return builder.bitcast(eight, _BYTES)


@compiled
def multiply_portable(
    queries_QD: Any, rows_R: Any, panels: Any, affine_3C: Any, panel: int, weights_R: Any, limits_R: Any, out_RC: Any
) -> Any:
    """Distances of `ROWS` queries, whose numbers `rows_R` begins with, and the columns of one panel.

    Args:
        queries_QD: uint8 codes with offset.
        panels: int8, whole panels one after the other, flat.
        affine_3C: for every column norm, scale, and `LEVELS` times the sum of its codes, which the offset adds to it.
        weights_R, limits_R: of the queries; a distance is `norm - weight * scale * product`.
        out_RC: (ROWS, PANEL) float32; overwritten with the distances.

    Returns:
        Bit r is set when any distance of query r is within its limit: one branch for 16 columns.
    """
    dims = queries_QD.shape[1]
    first = panel * dims * PANEL
    is_close = 0
    for r in range(ROWS):
        for c in range(PANEL):
            total = np.int32(0)
            for d in range(dims):
                code = panels[first + (d // 4 * PANEL + c) * 4 + d % 4]
                total += np.int32(queries_QD[rows_R[r], d]) * np.int32(code)
            norm, scale, sum_of_codes = affine_3C[:, panel * PANEL + c]
            out_RC[r, c] = norm - weights_R[r] * (scale * (np.float32(total) - sum_of_codes))
            is_close |= int(out_RC[r, c] <= limits_R[r]) << r
    return is_close


@compiled
def multiply_avx2(
    queries_QD: Any, rows_R: Any, panels: Any, affine_3C: Any, panel: int, weights_R: Any, limits_R: Any, out_RC: Any
) -> Any:
    """`multiply_portable` for processors with AVX2."""
    return _multiply_avx2(queries_QD, rows_R, panels, affine_3C, panel, weights_R, limits_R, out_RC)


multiply = multiply_avx2 if has_avx2() else multiply_portable
