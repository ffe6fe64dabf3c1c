"""Names for the array types that cross module borders, and the reading and writing of `.npy` files."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from retrodb.errors import DamagedFileError

BoolArray: TypeAlias = NDArray[np.bool_]
Int32Array: TypeAlias = NDArray[np.int32]
Int64Array: TypeAlias = NDArray[np.int64]
Float16Array: TypeAlias = NDArray[np.float16]
Float32Array: TypeAlias = NDArray[np.float32]
TokenArray: TypeAlias = NDArray[np.uint16] | NDArray[np.uint32]
AnyArray: TypeAlias = NDArray[Any]


def save_array(path: Path, array: AnyArray) -> None:
    """Write an array as `.npy` (version 1.0, C order); equal arrays give equal bytes."""
    with path.open("wb") as file:
        np.lib.format.write_array(file, np.ascontiguousarray(array), version=(1, 0), allow_pickle=False)


def map_array(path: Path) -> AnyArray:
    """Memory-map an `.npy` file read-only; its dtype and shape are its own.

    Raises:
        DamagedFileError: when the header is no `.npy` header or the file is shorter than it says.
    """
    try:
        array: AnyArray = np.load(path, mmap_mode="r", allow_pickle=False)
    except ValueError as error:
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
