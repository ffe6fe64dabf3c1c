"""What a purge is about: the documents of some names, with all their versions, and the snapshots that have them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from retrodb.format.arrays import Int64Array, map_array
from retrodb.format.entries import SourceEntry
from retrodb.format.ids import IdArray, key_of
from retrodb.format.records import FileRecord
from retrodb.stages.context import Context
from retrodb.stages.ingest.change import HELD_OUT_SET
from retrodb.store.manifest import load_manifest
from retrodb.store.snapshots import read_snapshot, snapshot_numbers
from retrodb.store.verify import VerifiedFiles
from retrodb.view.purged import KEY_DTYPE, is_among, purged_keys
from retrodb.view.view import View


@dataclass(frozen=True)
class Target:
    """One version of a document that has to go; of a document that compaction dropped, only its key is there."""

    query_set: str  # "" for the database's own chunks
    source: str
    doc_id: str
    first_chunk: int  # its id

    @property
    def pair(self) -> tuple[str, str]:
        """Source and id."""
        return self.source, self.doc_id


@dataclass(frozen=True)
class Targets:
    """All documents of the names that were given."""

    found: tuple[Target, ...]
    unknown: tuple[str, ...]  # names that no document has or, before it was purged, had
    keys: IdArray  # (K,) KEY_DTYPE: of all documents that the names mean, there still or purged before, sorted
    strings: frozenset[str]  # the ids, alone and behind their source

    def ids(self, query_set: str) -> Int64Array:
        """(Q,) the ids of the first chunks of those in the database ("") or in a query set, ascending."""
        own = {target.first_chunk for target in self.found if target.query_set == query_set}
        return np.array(sorted(own), dtype=np.int64)

    @property
    def sources(self) -> list[str]:
        """The sources that some of them are of."""
        return sorted({target.source for target in self.found})


def find_targets(view: View, names: Sequence[str]) -> Targets:
    """The documents that names mean: an id in whichever source, or source and id with a slash between them.

    A name that can be read as source and id, and is one, is not looked for as an id. What was purged before is known still.
    """
    names = list(dict.fromkeys(names))
    sources = _sources(view)
    full = [((name[:at], name[at + 1 :]), name) for name in names for at, sign in enumerate(name) if sign == "/"]
    full = [(pair, name) for pair, name in full if pair[0] in sources]
    bare = [((source, name), name) for source in sources for name in names]
    candidates = sorted({pair for pair, _ in (*full, *bare)})
    there = _lookup(view, candidates)
    is_purged = is_among(_keys(candidates), purged_keys(view)).tolist()
    known = {target.pair for target in there} | {
        pair for pair, purged in zip(candidates, is_purged, strict=True) if purged
    }
    by_full = {name for pair, name in full if pair in known}
    meant = {pair for pair, name in full if pair in known} | {
        pair for pair, name in bare if pair in known and name not in by_full
    }
    named = by_full | {name for pair, name in bare if pair in meant}
    return Targets(
        found=tuple(sorted((t for t in there if t.pair in meant), key=lambda t: (t.query_set, t.first_chunk))),
        unknown=tuple(name for name in names if name not in named),
        keys=np.unique(_keys(sorted(meant))),
        strings=frozenset(string for source, doc_id in meant for string in (doc_id, f"{source}/{doc_id}")),
    )


def _sources(view: View) -> list[str]:
    """All sources that ever had a document here."""
    return sorted({*view.shards.source, *view.snapshot.names(SourceEntry)})


def _keys(pairs: Sequence[tuple[str, str]]) -> IdArray:
    values = [divmod(key_of(source, doc_id), 1 << 64) for source, doc_id in pairs]
    return np.array(values, dtype=KEY_DTYPE)


def _lookup(view: View, pairs: Sequence[tuple[str, str]]) -> list[Target]:
    """The entries of ids files with the key of one of the (source, id)."""
    wanted = {key_of(*pair): pair for pair in pairs}
    keys = np.unique(_keys(pairs))
    found = []
    for query_set, record in id_files(view):
        entries = map_array(view.files.open(record))
        hits = entries[is_among(entries, keys)]
        for hit, first in zip(hits, (hits["row"] + record.first_chunk).tolist(), strict=True):
            source, doc_id = wanted[int(hit["key_hi"]) << 64 | int(hit["key_lo"])]
            found.append(Target(query_set, source, doc_id, first))
    return found


def id_files(view: View) -> list[tuple[str, FileRecord]]:
    """The ids files of the database ("") and of the held-out documents."""
    held_out = [r for r in view.manifest.files("queries", HELD_OUT_SET) if r.path.endswith("/ids.npy")]
    return [*(("", record) for record in view.manifest.files("ids")), *((HELD_OUT_SET, record) for record in held_out)]


def holding_snapshots(context: Context, keys: IdArray) -> list[int]:
    """The readable snapshots whose ids files have one of the keys, ascending. Each file is read once."""
    files, known = VerifiedFiles(context.storage), dict[str, bool]()
    holding = []
    for number in snapshot_numbers(context.storage):
        snapshot = read_snapshot(context.storage, number)
        if snapshot.expired_at is not None:
            continue
        manifest = load_manifest(context.storage, snapshot)
        records = [*manifest.files("ids"), *manifest.files("queries", HELD_OUT_SET)]
        for record in (record for record in records if record.kind == "ids" or record.path.endswith("/ids.npy")):
            if record.path not in known:
                known[record.path] = bool(is_among(map_array(files.open(record)), keys).any())
        if any(known.get(record.path) for record in records):
            holding.append(number)
    return holding
