"""The database side of a join: the rows of a range of lists in all parts, in the order of the lists."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from retrodb.ann.list_rows import ListRows
from retrodb.config import NeighboursParams
from retrodb.format.arrays import AnyArray, BoolArray, Int32Array, Int64Array
from retrodb.format.rows import bitmap_bytes, is_in
from retrodb.stages.index.live_parts import PartFiles, database_keys, key_kinds, open_files, parts_of
from retrodb.stages.neighbours.restriction import Restriction
from retrodb.stages.planned_view import PlannedSnapshot, planned_view
from retrodb.store.bounded_cache import CachedReader
from retrodb.store.storage import Storage
from retrodb.view.coverage import Coverage
from retrodb.view.view import View


@dataclass(frozen=True)
class ListRange:
    """Consecutive lists of a codebook."""

    first: int
    end: int  # one past the last

    @property
    def count(self) -> int:
        """The number of lists."""
        return self.end - self.first


@lru_cache(maxsize=1)
def planned_rows_in_lists(
    storage: Storage, snapshot: PlannedSnapshot, space: str, params: NeighboursParams, lists: ListRange
) -> list[ListRows]:
    """`rows_in_lists` of a planned snapshot, opened once per process."""
    return list(rows_in_lists(planned_view(storage, snapshot), space, params, lists))


def rows_in_lists(
    view: View,
    space: str,
    params: NeighboursParams,
    lists: ListRange,
    *,
    read: Int32Array | None = None,
    are_chosen: Callable[[Int64Array], BoolArray] | None = None,
) -> Iterator[ListRows]:
    """The rows of some lists in every part: which can be neighbours in a table, and the exclusion keys that it needs.

    Args:
        read: those of the lists, ascending, that are going to be scanned: nothing is read of the others. None: all.
        are_chosen: tells of ids (any order) whether a table with a restriction chooses them. None: their documents are read.
    """
    restriction = Restriction.of(view, params.where, params.sample, params.seed)
    if restriction is not None and are_chosen is None:
        are_chosen = _ChosenRows(view, restriction).mask
    covered_end = 0  # one past the ids of the parts before
    for number, files in enumerate(all_files := parts_of(view, space)):
        overlaps = files.span.first_chunk < covered_end
        before = Coverage([part.records[0] for part in all_files[:number]], view.files) if overlaps else None
        covered_end = max(covered_end, files.span.end)
        part = open_files(view.files, files)
        start, end = part.span_of_lists(lists.first, lists.end)
        if start == end:
            continue
        starts, ends = (
            (np.array([at]) for at in (start, end)) if read is None else part.positions_of_lists(read.astype(np.int64))
        )
        order_N = part.order_N.declared(starts, ends)
        positions = np.concatenate([np.empty(0, np.int64), *map(np.arange, starts.tolist(), ends.tolist())])
        ids = files.span.first_chunk + files.row_set(view.files).select(order_N[positions])
        allowed = _allowed(view, files, ids, before)
        if restriction is not None and are_chosen is not None:
            allowed = are_chosen(ids) if allowed is None else allowed & are_chosen(ids)
        rows = ListRows(
            part=part,
            first_list=lists.first,
            end_list=lists.end,
            ids_N=ids,
            allowed_N=None if allowed is None or allowed.all() else allowed,
            keys={kind: database_keys(view, kind, ids) for kind in key_kinds(params.exclude)},
        )
        yield rows if read is None else _placed(rows, positions - start, end - start)


def _placed(rows: ListRows, where: Int64Array, count: int) -> ListRows:
    """Some rows of lists at their positions among all `count` of them, of which the others are not allowed."""

    def placed(values: AnyArray) -> AnyArray:
        among_all: AnyArray = np.zeros(count, dtype=values.dtype)  # pages that nothing is written to take no memory
        among_all[where] = values
        return among_all

    allowed = np.ones(len(where), dtype=np.bool_) if rows.allowed_N is None else rows.allowed_N
    keys = {kind: placed(of_kind) for kind, of_kind in rows.keys.items()}
    return replace(rows, ids_N=placed(rows.ids_N), allowed_N=placed(allowed), keys=keys)


def _allowed(view: View, files: PartFiles, ids: Int64Array, before: Coverage | None) -> BoolArray | None:
    """(N,) which rows of a part are live, screened and in no part before it; None: records alone show that all are."""
    if before is None and view.chunks.is_all_live(*files.span) and view.is_all_screened(*files.span):
        return None
    allowed: BoolArray = view.chunks.is_live(ids) & view.is_screened(ids)
    for hit in () if before is None else before.lookup(ids):
        allowed[hit.where] = False
    return allowed


class _ChosenRows:
    """The chunks of documents that a restriction chooses, found out for one shard after another."""

    def __init__(self, view: View, restriction: Restriction) -> None:
        self._documents = view.coverage("documents")
        self._rows = CachedReader(restriction.rows_of, bitmap_bytes)

    def mask(self, ids: Int64Array) -> BoolArray:
        """(N,) which ids are chosen."""
        mask = np.zeros(len(ids), dtype=np.bool_)
        for hit in self._documents.lookup(ids):
            mask[hit.where] = is_in(self._rows(hit.record), hit.rows, hit.record.num_chunks)
        return mask
