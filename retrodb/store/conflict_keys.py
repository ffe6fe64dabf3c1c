"""What each command reads and writes, as far as other commits are concerned.

A commit conflicts with an earlier one that wrote a key which it had read. Entry keys that a change sets count as written. The
matrix in `format/README.md` follows from this file, and a test compares the two.

A key may end in a range of chunk ids, `@first-end`. Two such keys are equal if the rest is equal and the ranges overlap.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from retrodb.format.records import ChunkRange

RESTORE = "restore"  # written by restore; read by commands that must not be rebased over a restore
ROWS = "rows"  # which rows exist in files: written by compact, read by compact and undelete
REVIVALS = "revivals"  # rows that were undeleted: written by undelete, read by compact
ANYTHING = "*"  # read by restore: every commit in between is a conflict

_END_OF_IDS = 1 << 63


@dataclass(frozen=True)
class ConflictKeys:
    """What a command reads and, in addition to its entries, writes."""

    reads: frozenset[str]
    writes: frozenset[str]

    @property
    def lock(self) -> str:
        """The name of the advisory lock: two commands that read the same keys do the same work."""
        return "-".join(sorted(self.reads)) or "any"

    def __or__(self, other: ConflictKeys) -> ConflictKeys:
        """What both read and write."""
        return ConflictKeys(self.reads | other.reads, self.writes | other.writes)


def _keys(reads: set[str], writes: set[str] | None = None) -> ConflictKeys:
    return ConflictKeys(frozenset(reads), frozenset(writes or set()))


def ingest(source: str, query_set: str | None = None) -> ConflictKeys:
    """Adds shards of one source and supersedes documents of it; held-out documents are rows of a query set."""
    keys = {f"source/{source}"} | ({f"queries/{query_set}"} if query_set else set())
    return _keys(keys | {RESTORE}, keys)


def dedup(testset: str, *sources: str, revives: bool = False) -> ConflictKeys:
    """Registers or applies a test set: tombstones, which unite, and screened ranges; or revokes former ones."""
    return _with_undelete(_keys({f"testset/{testset}", RESTORE}, {f"testset/{testset}"}), revives, *sources)


def near_duplicates() -> ConflictKeys:
    """Tombstones of all but one document of a cluster; a document whose keeper was deleted may be undeleted."""
    return _with_undelete(_keys({"duplicates/near", RESTORE}, {"duplicates/near"}), True)


def filtering() -> ConflictKeys:
    """Tombstones by a decision of the user; tombstones unite."""
    return _keys({RESTORE})


def tag(attribute: str) -> ConflictKeys:
    """Adds coverage of an attribute."""
    return _keys({f"attribute/{attribute}"})


def embed(space: str) -> ConflictKeys:
    """Adds coverage of a space; creating the space sets its entry."""
    return _keys({f"space/{space}"}, {f"content/{space}"})


def index(space: str) -> ConflictKeys:
    """Adds parts under the codebook of a space, and sets the drift entry."""
    return _keys({f"space/{space}", f"index/{space}"}, {f"content/{space}"})


def retrain(space: str) -> ConflictKeys:
    """Trains a codebook, which sets the index entry, and replaces all parts: none may be added or merged meanwhile."""
    keys = index(space)
    return ConflictKeys(keys.reads | {f"drift/{space}", _all_parts(space)}, keys.writes)


def _all_parts(space: str) -> str:
    return f"parts/{space}@0-{_END_OF_IDS}"


def merge(space: str, ranges: Iterable[ChunkRange]) -> ConflictKeys:
    """Replaces the index parts of some ranges; they must still exist, under the same codebook."""
    keys = {f"parts/{space}@{span.first_chunk}-{span.end}" for span in ranges}
    return _keys({f"space/{space}", f"index/{space}", RESTORE} | keys, keys)


def drop_space(space: str, tables: Sequence[str] = ()) -> ConflictKeys:
    """Drops a space and the tables that use it: none may be added meanwhile, and no file of the space added or rewritten."""
    keys = {f"space/{space}", f"index/{space}"}
    keys |= {f"{kind}/{table}" for kind in ("table", "edits") for table in tables}
    return _keys(keys | {"default/space", f"content/{space}", _all_parts(space), ROWS}, keys)


def default_space(space: str) -> ConflictKeys:
    """Names another default space; which must not be dropped meanwhile."""
    return _keys({"default/space", f"space/{space}"}, {"default/space"})


def queries(name: str) -> ConflictKeys:
    """Registers a query set."""
    return _keys({f"queries/{name}"}, {f"queries/{name}"})


def neighbours(table: str, space: str | None = None) -> ConflictKeys:
    """Writes one neighbour table over a space; which must not be dropped meanwhile."""
    keys = f"table/{table}"
    spaces = {space} if space else set[str]()
    return _keys(
        {keys, RESTORE} | {f"space/{name}" for name in spaces}, {keys} | {f"content/{name}" for name in spaces}
    )


def edit(table: str) -> ConflictKeys:
    """Bans or pins neighbours of one table."""
    return _keys({f"edits/{table}", RESTORE}, {f"edits/{table}"})


def operating_point(space: str) -> ConflictKeys:
    """Sets the index entry of a space, for the codebook that it was measured with."""
    return _keys({f"index/{space}"})


def undelete(*sources: str) -> ConflictKeys:
    """Revokes a reason: the rows must still exist. Files of some sources may have to be read again."""
    keys = {f"source/{source}" for source in sources}
    return _keys({ROWS, RESTORE, *keys}, {REVIVALS, *keys})


def _with_undelete(keys: ConflictKeys, revives: bool, *sources: str) -> ConflictKeys:
    return keys | undelete(*sources) if revives else keys


def compact(*entries: str) -> ConflictKeys:
    """Rewrites files without their deleted rows; reads the entries of the kinds that it rewrites."""
    return _keys({ROWS, REVIVALS, RESTORE, *entries}, {ROWS})


def restore() -> ConflictKeys:
    """Makes an older state the newest; it writes the entries that it changes."""
    return _keys({ANYTHING}, {RESTORE, ROWS, REVIVALS})


def pin(name: str) -> ConflictKeys:
    """Pins a snapshot, so that it does not expire."""
    return _keys({f"pin/{name}"}, {f"pin/{name}"})


def export(name: str) -> ConflictKeys:
    """Registers an export; what it was made from may change, and a refresh reports it."""
    return _keys({f"export/{name}"})


def conflicts(reads: frozenset[str], writes: frozenset[str]) -> frozenset[str]:
    """What keeps a change that read `reads` from being rebased over one that wrote `writes`: keys that were read."""
    return frozenset({ANYTHING}) if ANYTHING in reads else (reads & writes) | _overlapping(reads, writes)


_RANGE_KEY = re.compile(r"(.+)@(\d+)-(\d+)")


def _overlapping(reads: frozenset[str], writes: frozenset[str]) -> frozenset[str]:
    """The keys with ranges that were read, and that overlap ranges which were written."""
    written = defaultdict[str, list[ChunkRange]](list)
    for _, name, span in _ranges(writes):
        written[name].append(span)
    return frozenset(
        key
        for key, name, span in _ranges(reads)
        if any(span.first_chunk < other.end and other.first_chunk < span.end for other in written[name])
    )


def _ranges(keys: Iterable[str]) -> list[tuple[str, str, ChunkRange]]:
    """The keys with ranges: each with the part before its range, and the range."""
    matches = ((key, _RANGE_KEY.fullmatch(key)) for key in keys)
    return [(key, m[1], ChunkRange(int(m[2]), int(m[3]) - int(m[2]))) for key, m in matches if m]
