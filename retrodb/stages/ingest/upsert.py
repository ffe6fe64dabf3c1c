"""What happens to each record of an input, given the documents that the source already has. Pure, on sorted keys.

Legend: R records of the input in reading order, D existing documents, C candidates (one record of each id). Entries are as in
`format/ids.py`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from retrodb.format.arrays import BoolArray, Int64Array, UInt64Array
from retrodb.format.document_keys import IdArray, sort_ids

ADDED, SUPERSEDES, UNCHANGED, DUPLICATE, HELD_OUT = 0, 1, 2, 3, 4
OUTCOMES = ("added", "superseded", "unchanged", "duplicate", "held_out")
"""Names of the outcomes of records, by code; `superseded` counts new versions of documents that changed."""

OutcomeArray: TypeAlias = NDArray[np.uint8]

_PARTITION_ENTRIES = 1 << 24  # entries compared at once: bounds memory at about 2 GiB, whatever the source's size


@dataclass(frozen=True)
class ExistingDocuments:
    """Documents of the source from one ids file."""

    entries: IdArray  # (D,) sorted by key
    first_chunk: int  # of the ids file: with an entry's row added it is the id of the document's first chunk
    is_current: BoolArray  # (D,) false for documents that were superseded or removed
    is_held_out: bool = False  # of the held-out query set: changed versions stay held out


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


def decide(
    new: IdArray,
    existing: Sequence[ExistingDocuments],
    holdout: float,
    *,
    mirror: bool = False,
    purged_keys: IdArray | None = None,
) -> Decisions:
    """Compare an input with the existing documents.

    Args:
        new: (R,) entries of the input in reading order; `row` is the record's number 0 .. R-1.
        holdout: fraction of the new documents to hold out, chosen by their keys.
        mirror: whether existing documents that the input does not have are missing.
        purged_keys: keys of documents that are never added. Their records count as unchanged.

    Of several records with one id the first counts. The others are duplicates.
    """
    outcomes = np.full(len(new), DUPLICATE, dtype=np.uint8)
    stale: dict[tuple[bool, str], list[Int64Array]] = defaultdict(list)
    for low, high in _partitions(len(new) + sum(len(documents.entries) for documents in existing)):
        candidates = _first_of_each_id(new[(new["key_hi"] >= low) & (new["key_hi"] <= high)])
        outcomes_C = np.full(len(candidates), ADDED, dtype=np.uint8)
        outcomes_C[candidates["key_hi"] < np.uint64(min(int(holdout * 2.0**64), 2**64 - 1))] = HELD_OUT
        for documents in existing:
            old = _restrict_to_keys(documents, low, high)
            superseded, missing = _compare(candidates, old, outcomes_C)
            stale[old.is_held_out, "superseded"].append(superseded)
            if mirror:
                stale[old.is_held_out, "missing"].append(missing)
        if purged_keys is not None:
            positions = _positions_of(purged_keys, candidates)
            outcomes_C[positions[positions >= 0]] = UNCHANGED
        outcomes[candidates["row"]] = outcomes_C

    def stale_documents(is_held_out: bool) -> StaleDocuments:
        ids = (np.sort(np.concatenate([_NO_IDS, *stale[is_held_out, which]])) for which in ("superseded", "missing"))
        return StaleDocuments(*ids)

    return Decisions(outcomes, stale_documents(False), stale_documents(True))


def _partitions(num_entries: int) -> Iterator[tuple[np.uint64, np.uint64]]:
    """Inclusive ranges of the keys' upper halves that together cover them all."""
    count = num_entries // _PARTITION_ENTRIES + 1
    edges = [(i << 64) // count for i in range(count + 1)]
    for low, high in pairwise(edges):
        yield np.uint64(low), np.uint64(high - 1)


def _restrict_to_keys(documents: ExistingDocuments, low: np.uint64, high: np.uint64) -> ExistingDocuments:
    """The documents whose keys' upper halves are in an inclusive range."""
    keys = documents.entries["key_hi"]
    inside = slice(np.searchsorted(keys, low), np.searchsorted(keys, high, side="right"))
    return replace(documents, entries=documents.entries[inside], is_current=documents.is_current[inside])


def _first_of_each_id(new: IdArray) -> IdArray:
    """The first record of each id, sorted by key."""
    ordered = sort_ids(new)
    first = np.ones(len(ordered), dtype=bool)
    first[1:] = (ordered["key_hi"][1:] != ordered["key_hi"][:-1]) | (ordered["key_lo"][1:] != ordered["key_lo"][:-1])
    return ordered[first]


def _compare(candidates: IdArray, old: ExistingDocuments, outcomes_C: OutcomeArray) -> tuple[Int64Array, Int64Array]:
    """Set the outcomes of the candidates that exist already; gives the ids of superseded and of missing documents."""
    positions = _positions_of(old.entries, candidates)
    is_in_input = (positions >= 0) & old.is_current
    is_same = is_in_input.copy()
    for half in ("hash_hi", "hash_lo"):
        is_same[is_in_input] &= candidates[half][positions[is_in_input]] == old.entries[half][is_in_input]
    is_changed = is_in_input & ~is_same
    outcomes_C[positions[is_same]] = UNCHANGED
    outcomes_C[positions[is_changed]] = HELD_OUT if old.is_held_out else SUPERSEDES
    ids = old.entries["row"] + old.first_chunk
    return ids[is_changed], ids[(positions < 0) & old.is_current]


_NO_IDS = np.empty(0, dtype=np.int64)


def _positions_of(entries: IdArray, candidates: IdArray) -> Int64Array:
    """(len(entries),) position of each entry's key among key-sorted, distinct `candidates`; -1 for none."""
    positions = np.full(len(entries), -1, dtype=np.int64)
    if not len(candidates):
        return positions
    start = np.searchsorted(candidates["key_hi"], entries["key_hi"])
    for _ in range(_longest_run(candidates["key_hi"])):  # one step, unless two ids share 64 bits of their keys
        index = np.minimum(start, len(candidates) - 1)
        is_equal = (candidates["key_hi"][index] == entries["key_hi"]) & (
            candidates["key_lo"][index] == entries["key_lo"]
        )
        positions[is_equal] = index[is_equal]
        start = start + 1
    return positions


def _longest_run(values: UInt64Array) -> int:
    edges = np.flatnonzero(np.concatenate(([True], values[1:] != values[:-1], [True])))
    return int(np.diff(edges).max())
