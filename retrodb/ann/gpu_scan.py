"""The scan of the join in PyTorch, for GPUs: the same codes and the same order of work as the compiled scan, on tensor cores.

Products of codes are exact integers here too (`torch._int_mm`). Candidates are compared by one 64-bit number. Its high half is
the distance, as an integer of the same order. Its low half orders equal distances by id: it is the id itself, counted from the
smallest, where all ids fit, and otherwise the position among the candidates by id. This module needs only PyTorch and NumPy.

Legend: Q queries, A lists of a query, W candidates kept, R queries of a tile, C columns of a list, D dimensions, J kinds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from retrodb.ann.topk import TopK
from retrodb.format.arrays import Float32Array, Int32Array, Int64Array

if TYPE_CHECKING:
    from torch import Tensor

LEVELS = 31  # codes from -31 to 31, as in `codegen/six_bit_codes.py`, which needs numba
# Bytes of one product in `_Tile.nearest`, counted generously: sum, scaled sum, distance and its ordered bits (4 each, and 4 for
# a temporary of this size), the number (8), and 4 for masks.
_PRODUCT_BYTES = 4 * 4 + 4 + 8 + 4
TILE_PRODUCTS = (2 << 30) // _PRODUCT_BYTES  # products at once: 2 GiB
_MULTIPLE = 32  # `torch._int_mm` on CUDA needs more than 16 rows, and dimensions and columns in multiples of 8
_NONE = np.iinfo(np.int64).max  # the number of an excluded candidate, and the id of none: after all others
_NO_DISTANCE = _NONE >> 32
_LOW_HALF = 0xFFFFFFFF
_NONE_IN_RANGE = _LOW_HALF  # low half of `_NONE`, which no candidate may have


@dataclass(frozen=True)
class ListColumns:
    """The allowed vectors of one list."""

    codes_CD: NDArray[np.int8]
    scales_C: Float32Array  # a vector is code * scale + centre
    ids_C: Int64Array  # ascending
    keys_JC: Int64Array  # exclusion keys


def scan_on_device(
    queries_QD: Float32Array,
    lists_QA: Int32Array,
    columns_of: Callable[[int], ListColumns],
    query_keys: list[Int64Array],
    intervals_QI2: Int64Array,
    centre_D: Float32Array,
    is_l2: bool,
    width: int,
    device: str,
    ids: range,
) -> TopK:
    """The `width` nearest of each query in its lists by the distances of codes, nearest first.

    Args:
        columns_of: reads a list.
        query_keys: for each kind (Q, any) exclusion keys, -1 padded.
        intervals_QI2: intervals of ids that each query excludes: the first id, and one past the last.
        ids: a range that has all ids of the lists. A range of 2^32 ids or more takes up to twice the time.
    """
    import torch

    with torch.inference_mode():
        centre = torch.from_numpy(centre_D).to(device)
        codes_QD, scales_Q = _encode(torch.from_numpy(queries_QD).to(device) - centre)
        weights_Q = scales_Q * (2 if is_l2 else 1)
        keys = [torch.from_numpy(keys_of_kind).to(device) for keys_of_kind in query_keys]
        intervals = torch.from_numpy(intervals_QI2).to(device)
        shape = (len(queries_QD), width)
        best = _NearestInRange(shape, ids, device) if len(ids) < _NONE_IN_RANGE else _Nearest(shape, device)
        for lists in (lists_QA[:, :1], lists_QA[:, 1:]):  # home lists first
            for list_, rows_R in _rows_by_list(lists):
                columns = columns_of(list_)
                if not len(columns.ids_C):
                    continue
                tile = _Tile.of(columns, centre, is_l2, device)
                step = max(1, TILE_PRODUCTS // len(columns.ids_C))
                for start in range(0, len(rows_R), step):
                    rows = torch.from_numpy(rows_R[start : start + step]).to(device)
                    excluded = _ExcludedOfRows([keys_of_kind[rows] for keys_of_kind in keys], intervals[rows])
                    low_C = best.low_half(tile.ids_C)
                    numbers = tile.nearest(codes_QD[rows], weights_Q[rows], excluded, low_C, width)
                    best.add(rows, numbers, tile.ids_C)
        ids_QW, ordered_QW = best.nearest()
        return np.asarray(ids_QW.cpu().numpy()), _distances(ordered_QW)


class _NearestInRange:
    """The nearest candidates of queries, as numbers that contain the id: ids are of a range of less than 2^32 - 1."""

    def __init__(self, shape: tuple[int, int], ids: range, device: str) -> None:
        import torch

        self._first_id = ids.start
        self._numbers_QW = torch.full(shape, _NONE, dtype=torch.int64, device=device)

    def low_half(self, ids_C: Tensor) -> Tensor:
        """The low halves of the numbers of some candidates."""
        return ids_C - self._first_id

    def add(self, rows: Tensor, numbers_RW: Tensor, ids_C: Tensor) -> None:
        """Add the nearest candidates of a list to those of some queries."""
        import torch

        del ids_C
        both = torch.cat([self._numbers_QW[rows], numbers_RW], dim=1)
        self._numbers_QW[rows] = torch.topk(both, self._numbers_QW.shape[1], dim=1, largest=False).values

    def nearest(self) -> tuple[Tensor, Tensor]:
        """(Q, W) int64 ids, nearest first, -1 padded, and the high halves of their numbers."""
        import torch

        ids = torch.where(self._numbers_QW == _NONE, -1, (self._numbers_QW & _LOW_HALF) + self._first_id)
        return ids, self._numbers_QW >> 32


class _Nearest:
    """The same for any ids: distances and ids are kept apart, and a number has the position of its candidate by id."""

    def __init__(self, shape: tuple[int, int], device: str) -> None:
        import torch

        self._ids_QW = torch.full(shape, _NONE, dtype=torch.int64, device=device)
        self._distances_QW = torch.full_like(self._ids_QW, _NO_DISTANCE)  # within 32 bits

    def low_half(self, ids_C: Tensor) -> Tensor:
        import torch

        return torch.arange(len(ids_C), device=ids_C.device)

    def add(self, rows: Tensor, numbers_RW: Tensor, ids_C: Tensor) -> None:
        import torch

        is_none = numbers_RW == _NONE
        ids_RW = torch.where(is_none, _NONE, ids_C[torch.where(is_none, 0, numbers_RW & _LOW_HALF)])
        ids = torch.cat([self._ids_QW[rows], ids_RW], dim=1)
        distances = torch.cat([self._distances_QW[rows], numbers_RW >> 32], dim=1)
        by_id = torch.argsort(ids, dim=1, stable=True)
        numbers = (distances.gather(1, by_id) << 32) | torch.arange(ids.shape[1], device=ids.device)
        nearest = torch.topk(numbers, self._ids_QW.shape[1], dim=1, largest=False).values
        positions = by_id.gather(1, nearest & _LOW_HALF)
        self._distances_QW[rows], self._ids_QW[rows] = distances.gather(1, positions), ids.gather(1, positions)

    def nearest(self) -> tuple[Tensor, Tensor]:
        import torch

        return torch.where(self._ids_QW == _NONE, -1, self._ids_QW), self._distances_QW


@dataclass(frozen=True)
class _ExcludedOfRows:
    """What some queries exclude."""

    keys: list[Tensor]  # (R, any) for each kind
    intervals_RI2: Tensor


@dataclass(frozen=True)
class _Tile:
    """One list on the device: tensors of `ListColumns`, with new codes relative to the centre."""

    codes_CD: Tensor
    scales_C: Tensor
    norms_C: Tensor
    ids_C: Tensor
    keys_JC: Tensor

    @classmethod
    def of(cls, columns: ListColumns, centre: Tensor, is_l2: bool, device: str) -> _Tile:
        import torch

        raw, scales_C, ids_C, keys_JC = (
            torch.from_numpy(array).to(device)
            for array in (columns.codes_CD, columns.scales_C, columns.ids_C, columns.keys_JC)
        )
        vectors_CD = raw * scales_C[:, None]  # relative to the centre
        wide = vectors_CD.double()  # so that the rounded sum does not depend on its order
        norms_C = (wide**2).sum(1) if is_l2 else -(wide @ centre.double())
        codes_CD, new_scales_C = _encode(vectors_CD)
        return cls(codes_CD, new_scales_C, norms_C.float(), ids_C, keys_JC)

    def nearest(
        self, codes_RD: Tensor, weights_R: Tensor, excluded: _ExcludedOfRows, low_C: Tensor, width: int
    ) -> Tensor:
        """The `width` nearest columns of some queries as numbers (R, at most width) with these low halves (C,)."""
        import torch

        products = _exact_product(codes_RD, self.codes_CD)
        distances = self.norms_C - weights_R[:, None] * (self.scales_C * products)
        bits = distances.view(torch.int32)
        ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
        numbers = (ordered.long() << 32) | low_C
        for bounds in excluded.intervals_RI2.unbind(1):
            numbers.masked_fill_((bounds[:, :1] <= self.ids_C) & (self.ids_C < bounds[:, 1:]), _NONE)
        for keys_of_kind, column_keys in zip(excluded.keys, self.keys_JC, strict=True):
            for key in keys_of_kind.unbind(1):
                numbers.masked_fill_((key[:, None] == column_keys) & (column_keys != -1), _NONE)
        return torch.topk(numbers, min(width, numbers.shape[1]), dim=1, largest=False).values


def _encode(vectors_ND: Tensor) -> tuple[Tensor, Tensor]:
    """int8 codes -31 .. 31 with zeros up to a multiple of 32 dimensions, and their scales."""
    import torch

    largest_N = vectors_ND.abs().amax(dim=1)
    inverse_N = torch.where(largest_N > 0, LEVELS / largest_N, 0)
    codes_ND = torch.round(vectors_ND * inverse_N[:, None]).to(torch.int8)
    padding = -codes_ND.shape[1] % _MULTIPLE
    return torch.nn.functional.pad(codes_ND, (0, padding)), largest_N / LEVELS


def _distances(ordered_QW: Tensor) -> Float32Array:
    """The distances whose ordered bits are the high halves of numbers; infinity for none."""
    ordered: Int64Array = ordered_QW.cpu().numpy()
    bits = np.where(ordered < 0, ordered ^ 0x7FFFFFFF, ordered).astype(np.int32)
    return np.where(ordered == _NO_DISTANCE, np.float32(np.inf), bits.view(np.float32))


def _exact_product(rows_RD: Tensor, columns_CD: Tensor) -> Tensor:
    """Inner products of codes as float32: exact below 2^24, which is up to 2^24 / 31^2 = 17,457 dimensions."""
    import torch

    num_rows, num_columns = len(rows_RD), len(columns_CD)
    pad = torch.nn.functional.pad
    rows_RD = pad(rows_RD, (0, 0, 0, -num_rows % _MULTIPLE))
    columns_CD = pad(columns_CD, (0, 0, 0, -num_columns % _MULTIPLE))
    return torch._int_mm(rows_RD, columns_CD.T)[:num_rows, :num_columns].float()


def _rows_by_list(lists_QA: Int32Array) -> list[tuple[int, Int64Array]]:
    """Each list that is probed, with the queries that probe it."""
    lists_P = lists_QA.ravel()
    order = np.argsort(lists_P, kind="stable")
    lists, starts = np.unique(lists_P[order], return_index=True)
    if not len(lists):
        return []
    rows = np.split(order // max(1, lists_QA.shape[1]), starts[1:])
    return [(list_, rows_of_list) for list_, rows_of_list in zip(lists.tolist(), rows, strict=True) if list_ >= 0]
