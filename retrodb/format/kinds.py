"""Every kind of file a database may hold, and where it lives.

The table in README.md lists the same kinds; a test compares the two.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

from retrodb.format.part_files import PART_FILES


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
    FileKind("rows", "rows/{digest}.roaring", "-", "-"),
    FileKind("blocks", "blocks/{digest}.xxh3", "-", "-"),
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
    FileKind("naming", "naming/{name}/{task}.parquet", "queries", "neighbours"),
    FileKind("joined", "joined/{name}/{task}.parquet", "-", "parts"),
    FileKind("edits", "edits/{name}/{task}.parquet", "-", "-"),
    FileKind("bands", "bands/{name}/{task}.npy", "chunks", "chunks"),
    FileKind("duplicates", "duplicates/{name}/{task}.parquet", "-", "chunks"),
    FileKind("reports", "reports/{task}.parquet", "-", "-"),
    FileKind("rejects", "rejects/{task}.parquet", "-", "-"),
    FileKind("runs", "runs/{run}/{file}", "-", "-"),
    FileKind("queue", "queue/{run}/{task}.json", "-", "-"),
    FileKind("heads", "heads/{number}.json", "-", "-"),
    FileKind("collection", "collection.json", "-", "-"),
    FileKind("checked", "check.json", "-", "-"),
    FileKind("repairing", "repair.json", "-", "-"),
)

KINDS: dict[str, FileKind] = {kind.name: kind for kind in _KINDS}

TABLE_KINDS = ("neighbours", "naming", "joined", "edits")
"""Kinds of the files of a neighbour table."""


def path_of(kind: str, **parts: str) -> str:
    """The path of a file of this kind, relative to the database, with `/` between parts."""
    return KINDS[kind].pattern.format(**parts)


_TABLE_ARRAYS = (
    "header|keys|posting_offsets|posting_items|slots|filter_bits|item_sizes|short_keys|short_items"
    "|text_bytes|text_offsets|id_bytes|id_offsets"
)
# What each part of a pattern may be; `{file}` differs by kind. A run's folder belongs to its stage: these names are used there.
_PARTS = {
    "name": r"[^/]+",
    "task": r"[0-9a-f]{32}(?:-\d+)?|[0-9a-f]{64}",
    "digest": r"[0-9a-f]{64}",
    "number": r"\d{20}",
    "run": r"[0-9a-f]{32}",
}
_FILES = {
    "parts": "|".join(re.escape(name) for name in PART_FILES),
    "testsets": rf"items\.parquet|(?:{_TABLE_ARRAYS})\.npy",
    "queries": r"(?:documents|chunks)\.parquet|(?:tokens|hashes|ids|vectors\.[^/]+)\.npy",
    "runs": r"plan\.json|(?:keys|sample|outcomes)\.npy"
    r"|(?:tasks|reports|counts|near|reuse|windows|spool|traces|order|sample|sample-texts|drift|exposure|lists|truth|join|training)/.+"
    r"|(?:excluded|found)/.+"
    r"|cancelled\.json|command\.json|(?:attempts|signs|logs|retries|verified)/.+",
}


@cache
def _pattern(kind: str) -> re.Pattern[str]:
    parts = _PARTS | {"file": _FILES.get(kind, "")}
    pieces = re.split(r"\{(\w+)\}", KINDS[kind].pattern)
    return re.compile("".join(f"(?:{parts[p]})" if index % 2 else re.escape(p) for index, p in enumerate(pieces)))


def kind_of(path: str) -> str | None:
    """The kind of file that a path is named as; None for a file that retrodb did not make."""
    kind = path.partition("/")[0]
    if "/" in path:
        return kind if kind in KINDS and _pattern(kind).fullmatch(path) else None
    return next((kind.name for kind in _KINDS if kind.pattern == path), None)
