"""The one float32 inner product, in a fixed order of summation.

There are 32 interleaved partial sums, which are added in pairs at the end; the remaining products follow one by one. The
compiler may not reorder float sums. So the bits do not depend on the batch shape, the threads, or the width of the
machine's registers. The kernel is written in LLVM's vector types, because the compiler makes scalar code from a loop over
32 scalars, which is five times slower.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from llvmlite import ir
from numba import types

from retrodb.ann.codegen.llvm import I64, NumbaObject, load, make_intrinsic, typed_code
from retrodb.format.arrays import Float32Array

LANES, SUMS = 8, 4  # a register of AVX2 has 8 floats; four of them hide the latency of an addition


def dot_portable(a_D: Float32Array, b_D: Float32Array) -> np.float32:
    """The inner product of two float32 vectors of equal length: the definition of `dot`, bit for bit."""
    products_D = a_D * b_D
    full = len(products_D) // (SUMS * LANES) * SUMS * LANES
    sums = np.zeros((SUMS, LANES), dtype=np.float32)
    for block in products_D[:full].reshape(-1, SUMS, LANES):
        sums += block
    lanes = (sums[0] + sums[1]) + (sums[2] + sums[3])
    while len(lanes) > 1:
        lanes = lanes[::2] + lanes[1::2]
    total: np.float32 = lanes[0]
    for product in products_D[full:]:
        total = total + product
    return total


_FLOATS = ir.VectorType(ir.FloatType(), LANES)


def _typed_dot(_context: NumbaObject, a_D: NumbaObject, b_D: NumbaObject) -> NumbaObject:
    return typed_code(types.float32, [a_D, b_D], _emit_dot)


dot: Callable[[Float32Array, Float32Array], np.float32] = make_intrinsic(_typed_dot)
"""`dot(a_D, b_D)`: the inner product of two contiguous float32 vectors of the first one's length, inside kernels."""


def _emit_dot(builder: ir.IRBuilder, a_D: ir.Value, b_D: ir.Value) -> ir.Value:
    a, b, length = a_D.data, b_D.data, builder.extract_value(a_D.shape, 0)
    zero = ir.Constant(_FLOATS, [0.0] * LANES)
    step = I64(LANES * SUMS)
    full = builder.mul(builder.udiv(length, step), step)

    def add_registers(start: ir.Value, sums: list[ir.Value]) -> list[ir.Value]:
        positions = [builder.add(start, I64(LANES * register)) for register in range(SUMS)]
        return [
            builder.fadd(
                total, builder.fmul(*(load(builder, builder.gep(vector, [position]), _FLOATS) for vector in (a, b)))
            )
            for total, position in zip(sums, positions, strict=True)
        ]

    def add_one(position: ir.Value, sums: list[ir.Value]) -> list[ir.Value]:
        product = builder.fmul(*(builder.load(builder.gep(vector, [position])) for vector in (a, b)))
        return [builder.fadd(sums[0], product)]

    s0, s1, s2, s3 = _loop(builder, I64(0), full, step, [zero] * SUMS, add_registers)
    lanes = builder.fadd(builder.fadd(s0, s1), builder.fadd(s2, s3))
    singles = [builder.extract_element(lanes, ir.IntType(32)(lane)) for lane in range(LANES)]
    while len(singles) > 1:
        singles = [builder.fadd(x, y) for x, y in zip(singles[::2], singles[1::2], strict=True)]
    return _loop(builder, full, length, I64(1), singles, add_one)[0]


def _loop(
    builder: ir.IRBuilder,
    first: ir.Value,
    stop: ir.Value,
    step: ir.Value,
    sums: list[ir.Value],
    body: Callable[[ir.Value, list[ir.Value]], list[ir.Value]],
) -> list[ir.Value]:
    """`for position in range(first, stop, step): sums = body(position, sums)`"""
    before = builder.block
    head, inside, after = (builder.append_basic_block(name) for name in ("head", "inside", "after"))
    builder.branch(head)
    builder.position_at_end(head)
    position = builder.phi(I64)
    position.add_incoming(first, before)
    phis = [builder.phi(value.type) for value in sums]
    builder.cbranch(builder.icmp_signed("<", position, stop), inside, after)
    builder.position_at_end(inside)
    results = body(position, phis)
    position.add_incoming(builder.add(position, step), inside)
    for phi, value, result in zip(phis, sums, results, strict=True):
        phi.add_incoming(value, before)
        phi.add_incoming(result, inside)
    builder.branch(head)
    builder.position_at_end(after)
    return phis
