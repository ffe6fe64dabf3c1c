"""What happens to each record of an input, given the documents that the source already has. Pure, on sorted keys.

Legend: R records of the input in reading order, C candidates (one record of each id), D existing documents of one ids file,
H pairs of a candidate and a document with its key. Entries are as in `format/document_keys.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from retrodb.format.arrays import BoolArray, Int64Array
from retrodb.format.document_keys import IdArray, SortedEntries, equal_keys, sort_ids
from retrodb.format.records import ChunkRange, FileRecord

ADDED, SUPERSEDES, UNCHANGED, DUPLICATE, HELD_OUT = 0, 1, 2, 3, 4
OUTCOMES = ("added", "superseded", "unchanged", "duplicate", "held_out")
"""Names of the outcomes of records, by code; `superseded` counts new versions of documents that changed."""

OutcomeArray: TypeAlias = NDArray[np.uint8]

_BLOCK_CANDIDATES = 1 << 20  # that are in memory at once


@dataclass(frozen=True)
class Comparison:
    """What the documents of some ids files mean for the candidates of an input."""

    outcomes: (
        Int64Array  # (n, 2) position of a candidate, and its outcome; of several for one candidate the last applies
    )
    superseded: Int64Array  # ids of the first chunks of documents that have another version in the input
    missing: Int64Array  # the same of documents that the input does not have, where the source mirrors the input


def last_of_each_position(outcomes: Int64Array) -> Int64Array:
    """(m, 2) the last of the outcomes (n, 2) for each candidate, by ascending position."""
    last = len(outcomes) - 1 - np.unique(outcomes[::-1, 0], return_index=True)[1]
    return np.asarray(outcomes[last])


@dataclass(frozen=True)
class StaleDocuments:
    """Documents of one ids file to delete, with all their rows."""

    span: ChunkRange  # of the file
    reason: str
    num_documents: int
    rows: bytes  # bitmap of rows of the range


@dataclass(frozen=True)
class Decisions:
    """What happens to every record, and to the existing documents."""

    outcomes: FileRecord  # (R,) codes of `OUTCOMES`
    num_by_outcome: tuple[int, ...]  # records with each code
    stale: tuple[StaleDocuments, ...]  # of the database
    stale_held_out: tuple[StaleDocuments, ...]  # of the held-out query set

    @property
    def has_stale(self) -> bool:
        """Whether an existing document is deleted."""
        return bool(self.stale or self.stale_held_out)


def first_of_each_id(new: IdArray) -> IdArray:
    """(C,) the candidates: the first record of each id, sorted by key.

    Args:
        new: (R,) entries of the input, or all of a range of keys; `row` is the record's number in reading order.
    """
    ordered = sort_ids(new)
    first = np.ones(len(ordered), dtype=bool)
    first[1:] = (ordered["key_hi"][1:] != ordered["key_hi"][:-1]) | (ordered["key_lo"][1:] != ordered["key_lo"][:-1])
    return ordered[first]


def compare(
    candidates: IdArray,
    entries: SortedEntries,
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
    entries_H = entries[entry_H]
    rows_H = entries_H["row"]
    is_current_H = is_current(rows_H) if len(rows_H) else np.empty(0, dtype=bool)
    is_same = is_current_H & (candidates["hash_hi"][candidate_H] == entries_H["hash_hi"])
    is_same &= candidates["hash_lo"][candidate_H] == entries_H["hash_lo"]
    is_changed = is_current_H & ~is_same
    outcomes = [
        np.stack([of_code, np.full(len(of_code), code)], axis=1)
        for of_code, code in ((candidate_H[is_same], UNCHANGED), (candidate_H[is_changed], changed))
    ]
    missing = _NO_IDS
    if mirror:
        other_rows = np.delete(entries[np.arange(len(entries))]["row"], entry_H)
        missing = other_rows[is_current(other_rows)] + first_chunk
    return Comparison(np.concatenate(outcomes), rows_H[is_changed] + first_chunk, missing)


def decide(
    outcomes: OutcomeArray,
    candidates: IdArray,
    existing: Iterable[Int64Array],
    holdout: float,
    purged_keys: IdArray | None = None,
) -> tuple[int, ...]:
    """Decide what an input does; gives the number of records with each outcome.

    In memory is one block of candidates, or what one item of `existing` says.

    Args:
        outcomes: (R,) codes to write, all DUPLICATE before: what the records that are no candidates are.
        candidates: (C,) as `first_of_each_id` gives them.
        existing: what existing documents mean for the candidates, as in `Comparison.outcomes`, each with at most one outcome
            for a candidate. Of several for one candidate the last applies.
        holdout: fraction of the new documents to hold out, chosen by their keys.
        purged_keys: sorted keys of documents that are never added. Their records count as unchanged.
    """
    for block in _blocks(candidates):
        is_held_out = block["key_hi"] < np.uint64(min(int(holdout * 2.0**64), 2**64 - 1))
        outcomes[block["row"]] = np.where(is_held_out, HELD_OUT, ADDED)
    for of_files in existing:
        outcomes[candidates[of_files[:, 0]]["row"]] = of_files[:, 1]
    counts = np.zeros(len(OUTCOMES), dtype=np.int64)
    counts[DUPLICATE] = len(outcomes) - len(candidates)
    for block in _blocks(candidates):
        if purged_keys is not None:
            outcomes[block["row"][equal_keys(block, purged_keys)[0]]] = UNCHANGED
        counts += np.bincount(outcomes[block["row"]], minlength=len(OUTCOMES))
    return tuple(counts.tolist())


def _blocks(candidates: IdArray) -> Iterator[IdArray]:
    for start in range(0, len(candidates), _BLOCK_CANDIDATES):
        yield np.array(candidates[start : start + _BLOCK_CANDIDATES])


_NO_IDS = np.empty(0, dtype=np.int64)
_NO_COMPARISON = Comparison(np.empty((0, 2), np.int64), _NO_IDS, _NO_IDS)
