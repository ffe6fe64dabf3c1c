"""Every kind of file a database may hold, and where it lives.

The table in README.md lists the same kinds; a test compares the two.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class FileKind:
    """One kind of file."""

    name: str  # first part of its path, and `kind` in the manifest
    pattern: str  # path below the database; {name} is a space, source, test set, query set, table or attribute
    covers: str  # what its rows are: "chunks" (packed rows of an id range), "queries", or "-" (no ids)
    derived_from: str  # what `check --repair` rebuilds it from, "-" when it cannot be derived


_KINDS = (
    FileKind("settings", "retrodb.toml", "-", "-"),
    FileKind("tokenizer", "tokenizer.json", "-", "-"),
    FileKind("snapshots", "snapshots/{number}.json", "-", "-"),
    FileKind("manifests", "manifests/{digest}.parquet", "-", "-"),
    FileKind("documents", "documents/{task}.parquet", "chunks", "-"),
    FileKind("chunks", "chunks/{task}.parquet", "chunks", "-"),
    FileKind("tokens", "tokens/{task}.npy", "chunks", "chunks"),
    FileKind("hashes", "hashes/{task}.npy", "chunks", "chunks"),
    FileKind("ids", "ids/{task}.npy", "chunks", "documents"),
    FileKind("vectors", "vectors/{name}/{task}.npy", "chunks", "chunks"),
    FileKind("parts", "parts/{name}/{task}/{file}", "chunks", "vectors"),
    FileKind("codebooks", "codebooks/{name}/{digest}.faiss", "-", "-"),
    FileKind("tombstones", "tombstones/{task}.parquet", "-", "-"),
    FileKind("purged", "purged/{task}.npy", "-", "-"),
    FileKind("attributes", "attributes/{name}/{task}.parquet", "chunks", "chunks"),
    FileKind("inputs", "inputs/{name}/{task}.parquet", "-", "-"),
    FileKind("testsets", "testsets/{name}/{task}/{file}", "-", "-"),
    FileKind("queries", "queries/{name}/{task}/{file}", "queries", "-"),
    FileKind("neighbours", "neighbours/{name}/{task}.parquet", "queries", "parts"),
    FileKind("joined", "joined/{name}/{task}.parquet", "-", "parts"),
    FileKind("edits", "edits/{name}/{task}.parquet", "-", "-"),
    FileKind("bands", "bands/{name}/{task}.npy", "chunks", "chunks"),
    FileKind("duplicates", "duplicates/{name}/{task}.parquet", "-", "chunks"),
    FileKind("reports", "reports/{task}.parquet", "-", "-"),
    FileKind("rejects", "rejects/{task}.parquet", "-", "-"),
    FileKind("runs", "runs/{run}/{file}", "-", "-"),
    FileKind("collection", "collection.json", "-", "-"),
    FileKind("checked", "check.json", "-", "-"),
    FileKind("repairing", "repair.json", "-", "-"),
)

KINDS: dict[str, FileKind] = {kind.name: kind for kind in _KINDS}


def path_of(kind: str, **parts: str) -> str:
    """The path of a file of this kind, relative to the database, with `/` between parts."""
    return KINDS[kind].pattern.format(**parts)
