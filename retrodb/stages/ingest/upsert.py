"""What happens to each record of an input, given the documents that the source already has. Pure, on sorted keys.

Legend: R records of the input in reading order, C candidates (one record of each id), D existing documents of one ids file,
H pairs of a candidate and a document with its key. Entries are as in `format/document_keys.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from retrodb.format.arrays import BoolArray, Int64Array
from retrodb.format.document_keys import IdArray, sort_ids
from retrodb.memory import PROCESS_MEMORY

ADDED, SUPERSEDES, UNCHANGED, DUPLICATE, HELD_OUT = 0, 1, 2, 3, 4
OUTCOMES = ("added", "superseded", "unchanged", "duplicate", "held_out")
"""Names of the outcomes of records, by code; `superseded` counts new versions of documents that changed."""

OutcomeArray: TypeAlias = NDArray[np.uint8]

_ENTRY_BYTES = 128  # memory to sort an entry: itself, its order, and copies
_LEAST_ENTRIES, _MOST_ENTRIES = 1 << 16, 1 << 24  # that are sorted at once


@dataclass(frozen=True)
class Comparison:
    """What the documents of some ids files mean for the candidates of an input."""

    outcomes: (
        Int64Array  # (n, 2) position of a candidate, and its outcome; of several for one candidate the last applies
    )
    superseded: Int64Array  # ids of the first chunks of documents that have another version in the input
    missing: Int64Array  # the same of documents that the input does not have, where the source mirrors the input

    @staticmethod
    def join(parts: Sequence[Comparison]) -> Comparison:
        """All of several comparisons, with one outcome for each candidate at most."""
        outcomes = np.concatenate([np.empty((0, 2), np.int64), *(part.outcomes for part in parts)])
        last = len(outcomes) - 1 - np.unique(outcomes[::-1, 0], return_index=True)[1]
        superseded = np.concatenate([_NO_IDS, *(part.superseded for part in parts)])
        return Comparison(outcomes[last], superseded, np.concatenate([_NO_IDS, *(part.missing for part in parts)]))


@dataclass(frozen=True)
class StaleDocuments:
    """Existing documents to delete, by the ids of their first chunks, ascending."""

    superseded: Int64Array  # the input has another version
    missing: Int64Array  # the source mirrors the input, which does not have them

    def __len__(self) -> int:
        return len(self.superseded) + len(self.missing)


@dataclass(frozen=True)
class Decisions:
    """What happens to every record, and to the existing documents."""

    outcomes: OutcomeArray  # (R,) codes of `OUTCOMES`
    stale: StaleDocuments  # chunk ids of the database
    stale_held_out: StaleDocuments  # rows of the held-out query set


def first_of_each_id(new: IdArray) -> IdArray:
    """(C,) the candidates: the first record of each id, sorted by key.

    Args:
        new: (R,) entries of the input in reading order; `row` is the record's number 0 .. R-1.
    """
    parts = []
    for low, high in _partitions(len(new)):
        ordered = sort_ids(new[(new["key_hi"] >= low) & (new["key_hi"] <= high)])
        first = np.ones(len(ordered), dtype=bool)
        first[1:] = (ordered["key_hi"][1:] != ordered["key_hi"][:-1]) | (
            ordered["key_lo"][1:] != ordered["key_lo"][:-1]
        )
        parts.append(ordered[first])
    return np.concatenate(parts)


def compare(
    candidates: IdArray,
    entries: IdArray,
    first_chunk: int,
    is_current: Callable[[Int64Array], BoolArray],
    *,
    changed: int = SUPERSEDES,
    mirror: bool = False,
) -> Comparison:
    """Compare an input with the documents of one ids file.

    Without `mirror` only those parts of the file are read that a binary search for the candidates touches.

    Args:
        candidates: (C,) as `first_of_each_id` gives them.
        entries: (D,) of the ids file, sorted by key. A key may occur several times.
        first_chunk: of the file: with an entry's row added it is the id of the document's first chunk.
        is_current: for first rows of documents, which of these were neither superseded nor removed.
        changed: the outcome of a candidate that is another version of a document.
        mirror: whether documents that the input does not have are missing.
    """
    candidate_H, entry_H = equal_keys(candidates, entries)
    if not len(entry_H) and not mirror:  # so is nearly every file of a large source
        return _NO_COMPARISON
    rows_H = entries["row"][entry_H]
    is_current_H = is_current(rows_H) if len(rows_H) else np.empty(0, dtype=bool)
    is_same = is_current_H & (candidates["hash_hi"][candidate_H] == entries["hash_hi"][entry_H])
    is_same &= candidates["hash_lo"][candidate_H] == entries["hash_lo"][entry_H]
    is_changed = is_current_H & ~is_same
    outcomes = [
        np.stack([of_code, np.full(len(of_code), code)], axis=1)
        for of_code, code in ((candidate_H[is_same], UNCHANGED), (candidate_H[is_changed], changed))
    ]
    missing = _NO_IDS
    if mirror:
        other_rows = np.delete(entries["row"], entry_H)
        missing = other_rows[is_current(other_rows)] + first_chunk
    return Comparison(np.concatenate(outcomes), rows_H[is_changed] + first_chunk, missing)


def decide(
    new: IdArray,
    candidates: IdArray,
    existing: Comparison,
    held_out: Comparison,
    holdout: float,
    purged_keys: IdArray | None = None,
) -> Decisions:
    """What an input does.

    Args:
        new: (R,) entries of the input in reading order; `row` is the record's number 0 .. R-1.
        candidates: (C,) of these, as `first_of_each_id` gives them. The other records are duplicates.
        existing, held_out: what the documents of the database and the held-out ones mean for the candidates.
        holdout: fraction of the new documents to hold out, chosen by their keys.
        purged_keys: sorted keys of documents that are never added. Their records count as unchanged.
    """
    outcomes_C = np.full(len(candidates), ADDED, dtype=np.uint8)
    outcomes_C[candidates["key_hi"] < np.uint64(min(int(holdout * 2.0**64), 2**64 - 1))] = HELD_OUT
    for comparison in (existing, held_out):
        outcomes_C[comparison.outcomes[:, 0]] = comparison.outcomes[:, 1]
    if purged_keys is not None:
        outcomes_C[equal_keys(candidates, purged_keys)[0]] = UNCHANGED
    outcomes = np.full(len(new), DUPLICATE, dtype=np.uint8)
    outcomes[candidates["row"]] = outcomes_C
    return Decisions(outcomes, _stale(existing), _stale(held_out))


def _stale(comparison: Comparison) -> StaleDocuments:
    return StaleDocuments(np.sort(comparison.superseded), np.sort(comparison.missing))


def _partitions(num_entries: int) -> Iterator[tuple[np.uint64, np.uint64]]:
    """Inclusive, ascending ranges of the keys' upper halves that together cover them all."""
    at_once = min(max(PROCESS_MEMORY.cache_bytes // _ENTRY_BYTES, _LEAST_ENTRIES), _MOST_ENTRIES)
    count = num_entries // at_once + 1
    edges = [(i << 64) // count for i in range(count + 1)]
    for low, high in pairwise(edges):
        yield np.uint64(low), np.uint64(high - 1)


_NO_IDS = np.empty(0, dtype=np.int64)
_NO_COMPARISON = Comparison(np.empty((0, 2), np.int64), _NO_IDS, _NO_IDS)


def equal_keys(first: IdArray, second: IdArray) -> tuple[Int64Array, Int64Array]:
    """Each (H,) int64: the positions of all pairs of entries with the same key.

    Both arrays are sorted by key. The keys of the shorter one are searched in the longer one, of which only the pages that
    these binary searches touch are read.
    """
    if len(first) > len(second):
        positions, others = equal_keys(second, first)
        return others, positions
    halves, others_halves = np.ascontiguousarray(first["key_hi"]), np.asarray(second["key_hi"])
    low = np.searchsorted(others_halves, halves)
    hits = np.flatnonzero(low < len(second))
    hits = hits[others_halves[low[hits]] == halves[hits]]
    if not len(hits):
        return hits, hits
    counts = np.searchsorted(others_halves, halves[hits], side="right") - low[hits]  # 1, unless keys share this half
    positions = np.repeat(hits, counts)
    others = np.repeat(low[hits] - np.cumsum(counts) + counts, counts) + np.arange(len(positions))
    is_equal = first["key_lo"][positions] == second["key_lo"][others]
    return positions[is_equal], others[is_equal]
