"""Every kind of file a database may hold, and where it lives.

The table in README.md lists the same kinds; a test compares the two.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache


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
    FileKind("heads", "heads/{number}.json", "-", "-"),
    FileKind("collection", "collection.json", "-", "-"),
    FileKind("checked", "check.json", "-", "-"),
    FileKind("repairing", "repair.json", "-", "-"),
)

KINDS: dict[str, FileKind] = {kind.name: kind for kind in _KINDS}


def path_of(kind: str, **parts: str) -> str:
    """The path of a file of this kind, relative to the database, with `/` between parts."""
    return KINDS[kind].pattern.format(**parts)


# What may stand in the place of each part of a pattern. A run's folder belongs to its stage: these are the names that stages use.
_RUN_FILES = (
    r"plan\.json|(?:excluded|candidates|sample|outcomes)\.npy"
    r"|(?:tasks|reports|counts|similarity|reuse|windows|spool|traces|order)/.+"
)
_PARTS = {
    "name": r"[^/]+",
    "task": r"[0-9a-f]{32}(?:-\d+)?|[0-9a-f]{64}",
    "digest": r"[0-9a-f]{64}",
    "number": r"\d{20}",
    "run": r"[0-9a-f]{32}",
    "file": r"[a-z][a-z0-9_]*(?:-\d+)?(?:\.[^/]+)?\.(?:npy|parquet|faiss|json)",
}


@cache
def _pattern(kind: str) -> re.Pattern[str]:
    parts = _PARTS | ({"file": _RUN_FILES} if kind == "runs" else {})
    pieces = re.split(r"\{(\w+)\}", KINDS[kind].pattern)
    names = (f"(?:{parts[piece]})" if index % 2 else re.escape(piece) for index, piece in enumerate(pieces))
    return re.compile("".join(names))


def kind_of(path: str) -> str | None:
    """The kind of file that a path is named as; None for a file that retrodb did not make."""
    kind = path.partition("/")[0]
    if "/" in path:
        return kind if kind in KINDS and _pattern(kind).fullmatch(path) else None
    return next((kind.name for kind in _KINDS if kind.pattern == path), None)
