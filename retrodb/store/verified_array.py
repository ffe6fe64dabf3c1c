"""The one way to read a mapped `.npy` file of the database: what is read is verified at first touch.

`array[rows]` is for NumPy: it verifies these rows and gives a plain array. `declared` is for kernels, which index the whole
array: it verifies the ranges of rows that they are going to read. Nothing else may touch the mapped bytes.

Legend: N rows, R ranges of rows, Q rows that are asked for.
"""

from __future__ import annotations

import io
import math
import re
from functools import lru_cache
from typing import TypeAlias

import numpy as np
from numpy.lib import format as npy

from retrodb.format.arrays import AnyArray, AnyDType, Int64Array, RowIndex
from retrodb.store.verified_bytes import MappedBytes

Index: TypeAlias = "RowIndex | str | tuple[RowIndex | None, ...]"
_MAGIC_BYTES = 12  # of a header: its magic, version and length


class VerifiedArray:
    """A mapped array. Only bytes that were verified leave it."""

    def __init__(self, file: MappedBytes) -> None:
        """Opens a file by its header.

        Raises:
            DamagedFileError: the header is not one of a C-ordered array without objects, or says another size than the file has.
        """
        self._file = file
        self._start, self._array = _mapped(file)
        self._row_bytes = math.prod(self._array.shape[1:]) * self._array.itemsize

    @property
    def dtype(self) -> AnyDType:
        """The type of the values."""
        return self._array.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape; the first dimension are the rows."""
        return self._array.shape

    @property
    def ndim(self) -> int:
        """The number of dimensions."""
        return self._array.ndim

    def __len__(self) -> int:
        return len(self._array)

    def __getitem__(self, index: Index) -> AnyArray:
        """Rows (and what a tuple selects in them) as a plain array, or a field of all rows; what it reads of is verified.

        Raises:
            DamagedFileError: names the file and the damaged block.
            IndexError: as of a NumPy array.
            TypeError: an index that names no rows, such as `...` or a new axis.
        """
        if isinstance(index, str):
            field: AnyArray = self.whole()[index]
            return field
        if not (isinstance(index, np.ndarray) and self._file.is_whole):  # then NumPy looks whether it names rows
            self._declare_rows(index[0] if isinstance(index, tuple) and index else index)
        values: AnyArray = self._array[index]
        return values

    def __array__(self, dtype: AnyDType | None = None, copy: bool | None = None) -> AnyArray:
        return np.array(self.whole(), dtype=dtype, copy=copy)

    def whole(self) -> AnyArray:
        """All rows, verified, as a plain array that is mapped. Raises DamagedFileError."""
        self._file.whole()
        return self._array

    def piece(self, row: int) -> AnyArray:
        """One row that the array has, as an array of one row (1, ...); what it reads is verified. Raises DamagedFileError."""
        size = self._row_bytes
        if size:
            self._file.declare_one(self._start + row * size, self._start + (row + 1) * size)
        piece: AnyArray = self._array[row : row + 1]
        return piece

    def declared(self, starts_R: Int64Array, ends_R: Int64Array) -> AnyArray:
        """The whole array, mapped, for a kernel that reads the rows `starts_R[i] .. ends_R[i]` and no others.

        Raises:
            DamagedFileError: names the file and the damaged block.
        """
        if not self._file.is_whole:
            size = self._row_bytes
            self._file.declare(self._start + starts_R * size, self._start + ends_R * size)
        return self._array

    def row(self, number: int) -> VerifiedArray:
        """One row as an array whose own rows are verified when they are read."""
        row = VerifiedArray.__new__(VerifiedArray)
        row._file, row._array = self._file, self._array[number]
        row._start = self._start + (number % len(self)) * self._row_bytes
        row._row_bytes = math.prod(row._array.shape[1:]) * row._array.itemsize
        return row

    def _declare_rows(self, rows: object) -> None:
        if isinstance(rows, slice):
            chosen = range(*rows.indices(len(self)))
            if abs(chosen.step) == 1 and len(chosen):
                first, last = min(chosen[0], chosen[-1]), max(chosen[0], chosen[-1])
                self.declared(np.array([first]), np.array([last + 1]))
                return
            rows = np.arange(chosen.start, chosen.stop, chosen.step)
        if not isinstance(rows, int | np.integer | list | np.ndarray) or isinstance(rows, bool):
            raise TypeError(f"{rows!r} names no rows of a verified array")
        rows_Q: AnyArray = np.asarray(rows)
        if rows_Q.dtype == bool:
            if rows_Q.shape != (len(self),):
                raise IndexError(f"a mask of shape {rows_Q.shape} for {len(self)} rows")
            rows_Q = np.flatnonzero(rows_Q)
        if not rows_Q.size:
            return
        if rows_Q.dtype.kind not in "iu":
            raise TypeError(f"{rows!r} names no rows of a verified array")
        rows_Q = rows_Q.ravel().astype(np.int64)
        low, high = int(rows_Q.min()), int(rows_Q.max())
        if low < -len(self) or high >= len(self):
            raise IndexError(f"a row outside of the {len(self)} rows of the array")
        if low < 0:
            rows_Q = np.where(rows_Q < 0, rows_Q + len(self), rows_Q)
        self.declared(rows_Q, rows_Q + 1)


class FieldOfRows:
    """A field of a structured array, of which single rows are asked for, as in a binary search."""

    def __init__(self, array: VerifiedArray, field: str) -> None:
        self._array, self._field = array, field

    def __len__(self) -> int:
        return len(self._array)

    def __getitem__(self, position: int) -> int:
        return int(self._array[position][self._field])


def _mapped(file: MappedBytes) -> tuple[int, AnyArray]:
    """Where the values begin, and the mapped array, of which the header alone is verified."""
    try:
        head = file.between(0, min(len(file.data), _MAGIC_BYTES))
        version = npy.read_magic(io.BytesIO(head))
        begin = 10 if version == (1, 0) else 12
        start = begin + int.from_bytes(head[8:begin], "little")
        if len(file.data) < start:
            raise ValueError("the header is cut off")
        shape, is_fortran, dtype = _parse(bytes(file.between(0, start)[begin:]))
        if version > (2, 0) or is_fortran or dtype.hasobject:
            raise ValueError(f"version {version}, Fortran order or objects")
        count = math.prod(shape)
        if len(file.data) != start + count * dtype.itemsize:
            raise ValueError(f"{len(file.data):,} bytes for shape {shape}")
    except ValueError as error:
        raise file.error_of(f"not a readable .npy file ({error})") from error
    array: AnyArray = np.frombuffer(file.data, dtype, count, start) if count else np.empty(0, dtype)
    array.flags.writeable = False
    return start, array.reshape(shape)


def _parse(header: bytes) -> _Header:
    """A header that is written as numpy writes it is parsed by its shape: many files have one type, whose parsing takes long."""
    match = _AS_WRITTEN.fullmatch(header)
    if match is None:
        return _parse_any(header)
    shape = tuple(int(length) for length in match[2].split(b",") if length)
    return (shape, *_parse_any(match[1] + b"(), }")[1:])


@lru_cache(maxsize=256)
def _parse_any(header: bytes) -> _Header:
    parsed: _Header = npy.read_array_header_2_0(io.BytesIO(len(header).to_bytes(4, "little") + header))
    return parsed


_Header: TypeAlias = "tuple[tuple[int, ...], bool, AnyDType]"
"""Shape, whether in Fortran order, and type."""
_AS_WRITTEN = re.compile(rb"(\{'descr': .+, 'fortran_order': False, 'shape': )\(((?:\d+, ?)*\d*)\), \} *\n")
