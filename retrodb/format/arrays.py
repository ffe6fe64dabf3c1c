"""Names for the array types that cross module borders, and the reading and writing of `.npy` files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from retrodb.errors import DamagedFileError

if TYPE_CHECKING:
    import pyarrow as pa

ByteArray: TypeAlias = NDArray[np.uint8]
BoolArray: TypeAlias = NDArray[np.bool_]
UInt32Array: TypeAlias = NDArray[np.uint32]
UInt64Array: TypeAlias = NDArray[np.uint64]
Int32Array: TypeAlias = NDArray[np.int32]
Int64Array: TypeAlias = NDArray[np.int64]
Float16Array: TypeAlias = NDArray[np.float16]
Float32Array: TypeAlias = NDArray[np.float32]
Float64Array: TypeAlias = NDArray[np.float64]
VectorArray: TypeAlias = NDArray[np.floating[Any]]  # (N, D) float16 as stored, or float32
TokenArray: TypeAlias = NDArray[np.uint16] | NDArray[np.uint32]
AnyArray: TypeAlias = NDArray[Any]
AnyDType: TypeAlias = np.dtype[Any]
RowIndex: TypeAlias = "int | np.integer[Any] | slice[Any, Any, Any] | list[int] | NDArray[Any]"
"""What chooses rows of an array."""


def vectors_of(column: pa.FixedSizeBinaryArray, dim: int) -> Float16Array:
    """The float16 vectors (Q, dim) in the bytes of an Arrow column without nulls; not copied."""
    values = np.frombuffer(column.buffers()[1], np.float16)
    vectors: Float16Array = values[column.offset * dim : (column.offset + len(column)) * dim].reshape(-1, dim)
    return vectors


def save_array(path: Path, array: AnyArray) -> None:
    """Write an array as `.npy` (version 1.0, C order); equal arrays give equal bytes."""
    with path.open("wb") as file:
        np.lib.format.write_array(file, np.ascontiguousarray(array), version=(1, 0), allow_pickle=False)


def array_header(dtype: np.dtype[Any], shape: tuple[int, ...]) -> bytes:
    """The bytes before the values of an `.npy` file (version 1.0, C order), as `save_array` writes them."""
    file = BytesIO()
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    return file.getvalue()


@contextmanager
def growing_array(
    path: Path, dtype: np.dtype[Any], row_shape: tuple[int, ...] = ()
) -> Iterator[Callable[[AnyArray], None]]:
    """A function that appends blocks of rows to a new `.npy` file; in the end its bytes are as `save_array` writes them."""
    num_rows = 0
    with path.open("wb") as file:

        def write_header() -> None:
            file.write(array_header(dtype, (num_rows, *row_shape)))  # numpy leaves room for the first dimension to grow

        def append(block: AnyArray) -> None:
            nonlocal num_rows
            num_rows += len(block)
            file.write(np.ascontiguousarray(block, dtype=dtype).data)

        write_header()
        yield append
        file.seek(0)
        write_header()


def map_array(path: Path) -> AnyArray:
    """Memory-map an `.npy` file read-only; its dtype and shape are its own.

    Raises:
        DamagedFileError: when the header is no `.npy` header or the file is shorter than it says.
    """
    try:
        array: AnyArray = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        if path.exists() and _is_empty_array(path):
            return np.load(path, allow_pickle=False)  # type: ignore[no-any-return]  # nothing to map in zero bytes
        raise DamagedFileError(f"not a readable .npy file ({error})", where=str(path)) from error
    return array


def _is_empty_array(path: Path) -> bool:
    with path.open("rb") as file:
        try:
            version = np.lib.format.read_magic(file)
            reader = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
            shape = reader[version](file)[0]
        except (ValueError, KeyError):
            return False
    return 0 in shape
