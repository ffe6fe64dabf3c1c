"""One change of every kind that the transaction matrix speaks of, on made-up files.

They are planned on a database with shard `one` of source a (ids 0 to 99), shard `two` of source b (100 to 199) and a space.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from made_up import change, file, shard, space_entry, table_entry, testset_entry

from retrodb.config import IndexParams, TagParams
from retrodb.format.entries import AttributeEntry, Entry, IndexEntry, SourceEntry
from retrodb.format.records import OP_DROP_FILE, OP_DROP_SHARD, DropRecord, ScreenedRecord
from retrodb.format.snapshot import Snapshot
from retrodb.store import conflict_keys
from retrodb.store.commit import Change, commit_first
from retrodb.store.storage import Storage


def found(storage: Storage) -> Snapshot:
    """Create the database that the actions are planned on."""
    vectors = [file("vectors", f"vectors/default/{t}.npy", name="default", first=f, count=100) for t, f in RANGES]
    entries = {"space/default": space_entry()}
    return commit_first(
        storage, change("init", shards=[shard("one", "a"), shard("two", "b")], files=vectors, entries=entries)
    )


RANGES = (("one", 0), ("two", 100))


def _ingest(source: str) -> Callable[[str], Change]:
    def build(tag: str) -> Change:
        entries = {f"source/{source}": SourceEntry(tag, None)}
        dead = file("tombstones", f"tombstones/{tag}.parquet")
        return change(tag, conflict_keys.ingest(source), shards=[shard(tag, source)], files=[dead], entries=entries)

    return build


def _dedup(testset: str) -> Callable[[str], Change]:
    def build(tag: str) -> Change:
        files = [file("tombstones", f"tombstones/{tag}.parquet"), file("testsets", f"testsets/{testset}/{tag}/t.npy")]
        screened = [ScreenedRecord(f"{testset}@1", first, 100) for _, first in RANGES]
        entries = {f"testset/{testset}": testset_entry(tag)}
        return change(tag, conflict_keys.dedup(testset), files=files, screened=screened, entries=entries)

    return build


def made_entry(key: str, tag: str) -> Entry:
    """An entry of a key's kind that differs for each tag."""
    if key.startswith("space/"):
        return replace(space_entry(), fingerprint=tag)
    if key.startswith("index/"):
        return IndexEntry(tag, "Flat", 1, "", IndexParams())
    return AttributeEntry({"made_by": tag}, TagParams())


def _coverage(kind: str, own: conflict_keys.ConflictKeys, entry: str = "") -> Callable[[str], Change]:
    def build(tag: str) -> Change:
        files = [file(kind, f"{kind}/default/{tag}-{t}", name="default", first=f, count=100) for t, f in RANGES]
        return change(tag, own, files=files, entries={entry: made_entry(entry, tag)} if entry else {})

    return build


def _tombstones(own: conflict_keys.ConflictKeys) -> Callable[[str], Change]:
    return lambda tag: change(tag, own, files=[file("tombstones", f"tombstones/{tag}.parquet")])


def _compact(tag: str) -> Change:
    """Both shards become one, under the ids that they have."""
    drops = [DropRecord(OP_DROP_SHARD, first_chunk=first) for _, first in RANGES]
    drops += [DropRecord(OP_DROP_FILE, path=f.path) for task, _ in RANGES for f in shard(task).files]
    joined = shard(tag, "a", num_chunks=200, num_documents=20, first=0)
    return change(tag, conflict_keys.compact(), drops=drops, shards=[joined])


def _restore(tag: str) -> Change:
    """Back to before shard `two`: its files and its vectors go."""
    paths = [f.path for f in shard("two").files] + ["vectors/default/two.npy"]
    drops = [DropRecord(OP_DROP_SHARD, first_chunk=100), *(DropRecord(OP_DROP_FILE, path=path) for path in paths)]
    return change(tag, conflict_keys.restore(), drops=drops)


def _neighbours(table: str) -> Callable[[str], Change]:
    def build(tag: str) -> Change:
        rows = file("neighbours", f"neighbours/{table}/{tag}.parquet", name=table, first=0, count=200)
        return change(
            tag, conflict_keys.neighbours(table, "default"), files=[rows], entries={f"table/{table}": table_entry()}
        )

    return build


LATER: dict[str, Callable[[str], Change]] = {
    "ingest": _ingest("a"),
    "dedup": _dedup("t"),
    "embed": _coverage("vectors", conflict_keys.embed("default")),
    "index": _coverage("parts", conflict_keys.index("default")),
    "tag": _coverage("attributes", conflict_keys.tag("default")),
    "filter": _tombstones(conflict_keys.filtering()),
    "undelete": _tombstones(conflict_keys.undelete()),
    "compact": _compact,
    "restore": _restore,
    "neighbours": _neighbours("self"),
}
"""The columns of the matrix: what is committed after something else came in between."""

BETWEEN: dict[str, Callable[[str], Change]] = {
    "ingest, same source": LATER["ingest"],
    "ingest, other source": _ingest("b"),
    "dedup, same test set": LATER["dedup"],
    "dedup, other test set": _dedup("u"),
    "embed": LATER["embed"],
    "embed, new space": _coverage("vectors", conflict_keys.embed("default"), "space/default"),
    "index": LATER["index"],
    "index, retrained": _coverage("parts", conflict_keys.retrain("default"), "index/default"),
    "tag": LATER["tag"],
    "filter": LATER["filter"],
    "undelete": LATER["undelete"],
    "compact": LATER["compact"],
    "restore": LATER["restore"],
    "neighbours, same table": LATER["neighbours"],
    "neighbours, other table": _neighbours("other"),
}
"""The rows: what came in between."""


def renamed(built: Change, transaction: str) -> Change:
    """The same change as another transaction."""
    return replace(built, transaction=transaction)
