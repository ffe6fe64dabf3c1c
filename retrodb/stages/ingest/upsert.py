"""What happens to each record of an input, given what the source already has. Pure, on sorted keys.

Legend: R records of the input in reading order, D documents known from earlier, entries as in `format/ids.py`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from retrodb.format.arrays import BoolArray, Int64Array
from retrodb.format.ids import IdArray, sort_ids

ADDED, SUPERSEDES, UNCHANGED, DUPLICATE, HELD_OUT = 0, 1, 2, 3, 4
OUTCOMES = ("added", "superseded", "unchanged", "duplicate", "held_out")
"""Counts of a run by outcome; `superseded` counts new versions of documents that changed."""

_PARTITION_ENTRIES = 1 << 24  # entries compared at once: bounds memory at about 2 GiB, whatever the source's size


@dataclass(frozen=True)
class ExistingDocuments:
    """Documents of the source from one ids file."""

    entries: IdArray  # (D,) sorted by key
    first_chunk: int  # added to an entry's row it gives the id of the document's first chunk
    is_current: BoolArray  # (D,) false for documents that were superseded or removed
    is_held_out: bool = False  # of the held-out query set: changed versions stay held out


@dataclass(frozen=True)
class Stale:
    """Old documents, by the ids of their first chunks, ascending."""

    superseded: Int64Array  # the input has another version
    missing: Int64Array  # the input does not have them, and mirrors the source

    def __len__(self) -> int:
        return len(self.superseded) + len(self.missing)


@dataclass(frozen=True)
class Decisions:
    """The fate of every record, and of what was there."""

    outcome: np.ndarray[tuple[int], np.dtype[np.uint8]]  # (R,) one of the constants above
    stale: Stale  # chunk ids of the database
    stale_held_out: Stale  # rows of the held-out query set


def decide(
    new: IdArray,
    known: Sequence[ExistingDocuments],
    holdout: float,
    *,
    mirror: bool = False,
    never: IdArray | None = None,
) -> Decisions:
    """Compare an input with what is known.

    Args:
        new: (R,) entries of the input in reading order; `row` is the record's number 0 .. R-1.
        holdout: share of unknown documents to keep out, by their key.
        mirror: whether documents that the input does not have are missing.
        never: keys of documents that are not added whatever they say: to the database they are unchanged.

    Of several records with one id the first counts; the others are duplicates.
    """
    outcome = np.full(len(new), DUPLICATE, dtype=np.uint8)
    stale: dict[tuple[bool, str], list[Int64Array]] = defaultdict(list)
    for low, high in _partitions(len(new) + sum(len(k.entries) for k in known)):
        candidates = _first_of_each_id(new[(new["key_hi"] >= low) & (new["key_hi"] <= high)])
        fate = np.full(len(candidates), ADDED, dtype=np.uint8)
        fate[candidates["key_hi"] < np.uint64(min(int(holdout * 2.0**64), 2**64 - 1))] = HELD_OUT
        for whole in known:
            old = _slice(whole, low, high)
            superseded, missing = _settle(candidates, old, fate)
            stale[old.is_held_out, "superseded"].append(superseded)
            if mirror:
                stale[old.is_held_out, "missing"].append(missing)
        if never is not None:
            place = _find(candidates, never)
            fate[place[place >= 0]] = UNCHANGED
        outcome[candidates["row"]] = fate

    def collected(is_held_out: bool) -> Stale:
        ids = (np.sort(np.concatenate([_NO_IDS, *stale[is_held_out, which]])) for which in ("superseded", "missing"))
        return Stale(*ids)

    return Decisions(outcome, collected(False), collected(True))


def _partitions(num_entries: int) -> Iterator[tuple[np.uint64, np.uint64]]:
    """Inclusive ranges of the keys' upper halves that together cover them all."""
    count = num_entries // _PARTITION_ENTRIES + 1
    edges = [(i << 64) // count for i in range(count + 1)]
    for low, high in pairwise(edges):
        yield np.uint64(low), np.uint64(high - 1)


def _slice(known: ExistingDocuments, low: np.uint64, high: np.uint64) -> ExistingDocuments:
    keys = known.entries["key_hi"]
    own = slice(np.searchsorted(keys, low), np.searchsorted(keys, high, side="right"))
    return replace(known, entries=known.entries[own], is_current=known.is_current[own])


def _first_of_each_id(new: IdArray) -> IdArray:
    """The first record of each id, sorted by key."""
    ordered = sort_ids(new)
    first = np.ones(len(ordered), dtype=bool)
    first[1:] = (ordered["key_hi"][1:] != ordered["key_hi"][:-1]) | (ordered["key_lo"][1:] != ordered["key_lo"][:-1])
    return ordered[first]


def _settle(
    candidates: IdArray, old: ExistingDocuments, fate: np.ndarray[tuple[int], np.dtype[np.uint8]]
) -> tuple[Int64Array, Int64Array]:
    """Write the fate of the candidates that are known into `fate`; gives the old documents superseded and missing."""
    place = _find(candidates, old.entries)  # where each old entry's id stands in the input, -1 for nowhere
    found = (place >= 0) & old.is_current
    same = found.copy()
    for half in ("hash_hi", "hash_lo"):
        same[found] &= candidates[half][place[found]] == old.entries[half][found]
    changed = found & ~same
    fate[place[same]] = UNCHANGED
    fate[place[changed]] = HELD_OUT if old.is_held_out else SUPERSEDES
    ids = old.entries["row"] + old.first_chunk
    return ids[changed], ids[(place < 0) & old.is_current]


_NO_IDS = np.empty(0, dtype=np.int64)


def _find(candidates: IdArray, entries: IdArray) -> Int64Array:
    """Index among key-sorted, distinct `candidates` of each entry's key, -1 where it is not there."""
    place = np.full(len(entries), -1, dtype=np.int64)
    if not len(candidates):
        return place
    start = np.searchsorted(candidates["key_hi"], entries["key_hi"])
    for _ in range(_longest_run(candidates["key_hi"])):  # one step, unless two ids share 64 bits of their keys
        at = np.minimum(start, len(candidates) - 1)
        hit = (candidates["key_hi"][at] == entries["key_hi"]) & (candidates["key_lo"][at] == entries["key_lo"])
        place[hit] = at[hit]
        start = start + 1
    return place


def _longest_run(values: np.ndarray[tuple[int], np.dtype[np.uint64]]) -> int:
    edges = np.flatnonzero(np.concatenate(([True], values[1:] != values[:-1], [True])))
    return int(np.diff(edges).max())
