"""What the two intrinsics need of numba's internals and of LLVM's instructions.

An intrinsic is a function that numba does not compile from Python. Its typing function gives the signature, and a function
that writes the LLVM instructions wherever a kernel calls it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import llvmlite.binding
import numba
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

NumbaObject: TypeAlias = Any  # contexts, types, signatures and intrinsics of numba, which have no stable annotations
I32, I64 = ir.IntType(32), ir.IntType(64)


def has_avx2() -> bool:
    """Whether numba compiles for a processor with AVX2."""
    config: NumbaObject = numba.config
    is_other_processor = config.CPU_NAME or config.CPU_FEATURES
    return not is_other_processor and bool(llvmlite.binding.get_host_cpu_features().get("avx2"))


def make_intrinsic(typing_function: Callable[..., object]) -> NumbaObject:
    """An intrinsic, callable in kernels, from a typing function that returns `typed_code`."""
    return intrinsic(typing_function)


def typed_code(result: NumbaObject, arguments: list[NumbaObject], emit: Callable[..., ir.Value]) -> NumbaObject:
    """The answer of a typing function.

    Args:
        result: numba's type of the result.
        arguments: numba's types of the arguments.
        emit: takes the builder and the arguments, arrays as structures with `data` and `shape`; gives the result.
    """

    def generate(context: NumbaObject, builder: ir.IRBuilder, signature: NumbaObject, values: NumbaObject) -> ir.Value:
        structures = [
            context.make_array(kind)(context, builder, value) if isinstance(kind, types.Array) else value
            for kind, value in zip(signature.args, values, strict=True)
        ]
        return emit(builder, *structures)

    return result(*arguments), generate


def load(builder: ir.IRBuilder, pointer: ir.Value, kind: ir.Type) -> ir.Value:
    """A vector or number of this type, which may begin at any byte."""
    value = builder.load(builder.bitcast(pointer, kind.as_pointer()))
    value.align = 1
    return value


def store(builder: ir.IRBuilder, value: ir.Value, pointer: ir.Value) -> None:
    """The opposite of `load`."""
    builder.store(value, builder.bitcast(pointer, value.type.as_pointer())).align = 1


def declare(builder: ir.IRBuilder, name: str, result: ir.Type, operand: ir.Type) -> ir.Value:
    """An instruction of the processor, as LLVM's function of two equal operands."""
    function = ir.FunctionType(result, [operand, operand])
    return cgutils.get_or_insert_function(builder.module, function, name)  # type: ignore[no-untyped-call]
