"""The one float32 inner product, in a fixed order of summation.

32 interleaved partial sums, which are then added in pairs, and what is left over at the end. The compiler may not regroup
float sums, so neither batch shape, nor threads, nor the width of the machine's registers changes a bit; said in LLVM's
vector types, because from a loop over 32 scalars the compiler makes scalar code, five times slower.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

LANES, SUMS = 8, 4  # a register of AVX2; four of them hide the latency of an addition
_I64 = ir.IntType(64)
_FLOATS = ir.VectorType(ir.FloatType(), LANES)


def _dot(_context: Any, a_D: Any, b_D: Any) -> Any:
    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        a, b = (
            context.make_array(kind)(context, builder, value)
            for kind, value in zip(signature.args, arguments, strict=True)
        )
        return _emit(builder, a.data, b.data, builder.extract_value(a.shape, 0))

    return types.float32(a_D, b_D), emit


dot: Any = intrinsic(_dot)
"""`dot(a_D, b_D)`: the inner product of two contiguous float32 vectors of the first one's length."""


def _emit(builder: Any, a: Any, b: Any, length: Any) -> Any:
    zero = ir.Constant(_FLOATS, [0.0] * LANES)
    step = _I64(LANES * SUMS)
    full = builder.mul(builder.udiv(length, step), step)

    def add_registers(at: Any, sums: list[Any]) -> list[Any]:
        places = [builder.add(at, _I64(LANES * lane)) for lane in range(SUMS)]
        return [
            builder.fadd(total, builder.fmul(_load(builder, a, place), _load(builder, b, place)))
            for total, place in zip(sums, places, strict=True)
        ]

    def add_one(at: Any, sums: list[Any]) -> list[Any]:
        product = builder.fmul(builder.load(builder.gep(a, [at])), builder.load(builder.gep(b, [at])))
        return [builder.fadd(sums[0], product)]

    s0, s1, s2, s3 = _loop(builder, _I64(0), full, step, [zero] * SUMS, add_registers)
    lanes = builder.fadd(builder.fadd(s0, s1), builder.fadd(s2, s3))
    singles = [builder.extract_element(lanes, ir.IntType(32)(lane)) for lane in range(LANES)]
    while len(singles) > 1:
        singles = [builder.fadd(x, y) for x, y in zip(singles[::2], singles[1::2], strict=True)]
    return _loop(builder, full, length, _I64(1), singles, add_one)[0]


def _loop(builder: Any, first: Any, stop: Any, step: Any, sums: list[Any], body: Any) -> list[Any]:
    """`for at in range(first, stop, step): sums = body(at, sums)`"""
    before = builder.block
    head, inside, after = (builder.append_basic_block(name) for name in ("head", "inside", "after"))
    builder.branch(head)
    builder.position_at_end(head)
    at = builder.phi(_I64)
    at.add_incoming(first, before)
    phis = [builder.phi(value.type) for value in sums]
    builder.cbranch(builder.icmp_signed("<", at, stop), inside, after)
    builder.position_at_end(inside)
    results = body(at, phis)
    at.add_incoming(builder.add(at, step), inside)
    for phi, value, result in zip(phis, sums, results, strict=True):
        phi.add_incoming(value, before)
        phi.add_incoming(result, inside)
    builder.branch(head)
    builder.position_at_end(after)
    return phis


def _load(builder: Any, array: Any, place: Any) -> Any:
    value = builder.load(builder.bitcast(builder.gep(array, [place]), _FLOATS.as_pointer()))
    value.align = 4
    return value
