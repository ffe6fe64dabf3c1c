"""Registering a test set: its items and shingle table become files of the database, for the screening of later documents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from retrodb.config import DedupParams
from retrodb.dedup.leak_rule import parse_rule
from retrodb.dedup.lsh import parse_bands
from retrodb.dedup.shingle_table import ShingleTable, build_shingle_table, load_shingle_table, save_shingle_table
from retrodb.dedup.shingles import SHINGLE_VERSION, check_ngram
from retrodb.errors import UsageError
from retrodb.format.entries import TestsetEntry
from retrodb.format.json_codec import to_plain_object
from retrodb.format.kinds import path_of
from retrodb.format.parquet import write_table
from retrodb.format.records import FileRecord
from retrodb.store.digest import digest_bytes, identity
from retrodb.store.publish import publish
from retrodb.view.view import View

if TYPE_CHECKING:
    import pyarrow as pa

TABLE_FILES = tuple(field.name for field in fields(ShingleTable))


@dataclass(frozen=True)
class TestSet:
    """A test set, registered or about to be."""

    __test__ = False  # pytest: no test class

    name: str
    entry: TestsetEntry
    files: tuple[FileRecord, ...]  # published: items and shingle table
    is_new: bool  # the snapshot has no test set of this name, or another version of it


def check_params(params: DedupParams) -> None:
    """Raises UsageError for an invalid rule, level, n-gram or method."""
    rule = parse_rule(params.rule)
    check_ngram(params.ngram)
    if params.level not in ("document", "chunk"):
        raise UsageError(f"unknown level '{params.level}'", remedy="Valid values: 'document', 'chunk'.")
    if params.short_texts not in ("report", "remove"):
        raise UsageError(
            f"unknown treatment '{params.short_texts}' of short texts", remedy="Valid values: 'report', 'remove'."
        )
    if params.method not in ("exact", "minhash"):
        raise UsageError(f"unknown method '{params.method}'", remedy="Valid values: 'exact', 'minhash'.")
    parse_bands(params.bands, params.permutations)
    if params.method == "minhash" and rule.measure != "jaccard":
        raise UsageError(
            "MinHash finds pairs by their Jaccard similarity and would miss most contained items",
            remedy="Use --method exact for containment rules.",
        )
    if params.max_document_frequency is not None and rule.measure != "containment":
        raise UsageError(
            "--max-document-frequency needs a containment rule; a Jaccard rule counts every shingle",
            remedy="Leave it out, or give --rule 'containment>=X'.",
        )


def register_testset(
    view: View, name: str, ids: Sequence[str], texts: pa.LargeStringArray, params: DedupParams
) -> TestSet:
    """Publish a test set's files, unless the snapshot has the same test set.

    Args:
        ids: of the items; a repeated id gets a number (`7`, `7#2`).

    Raises:
        UsageError: for a test set without items, or a name that cannot be a folder.
    """
    import pyarrow as pa

    if not name or "/" in name or name.startswith("."):
        raise UsageError(f"'{name}' cannot name a test set", remedy="Give a short --name without '/'.")
    if not ids:
        raise UsageError(f"test set '{name}' has no items", remedy="Look at the files given to --against.")
    ids = _unique(ids)
    content = digest_bytes("\0".join([*ids, *texts.to_pylist()]).encode()).sha256.hex()
    digest = identity(content, to_plain_object(params), SHINGLE_VERSION)
    former = view.snapshot.entry(TestsetEntry, name)
    if former and former.digest == digest:
        return registered_testset(view, name)
    items = pa.table({"id": pa.array(ids, pa.string()), "text": texts})
    path = partial(path_of, "testsets", name=name, task=digest)
    put = partial(publish, view.storage, "testsets", name=name)
    files = [put(path(file="items.parquet"), partial(write_table, table=items))]
    with TemporaryDirectory() as folder:
        save_shingle_table(build_shingle_table(texts, ids, params.ngram), Path(folder))
        for field in TABLE_FILES:
            data = (Path(folder) / f"{field}.npy").read_bytes()
            files.append(put(path(file=f"{field}.npy"), partial(_write_bytes, data=data)))
    version = former.version + 1 if former else 1
    entry = TestsetEntry(digest, len(ids), params, version)
    return TestSet(name, entry, tuple(files), is_new=True)


def registered_testset(view: View, name: str) -> TestSet:
    """A test set of the snapshot.

    Raises:
        UsageError: when there is none of this name.
    """
    entry = view.snapshot.entry(TestsetEntry, name)
    if entry is None:
        raise UsageError(f"no test set '{name}'", remedy="Register it with 'retrodb dedup DB --against FILE'.")
    folder = path_of("testsets", name=name, task=entry.digest, file="")
    files = [record for record in view.manifest.files("testsets", name) if record.path.startswith(folder)]
    return TestSet(name, entry, tuple(files), is_new=False)


def open_table(view: View, testset: TestSet) -> ShingleTable:
    """The table of a test set, verified and memory-mapped."""
    return load_shingle_table(map(view.files.open, testset.files))


def _unique(ids: Sequence[str]) -> list[str]:
    counts: dict[str, int] = {}
    unique = []
    for item in ids:
        counts[item] = counts.get(item, 0) + 1
        unique.append(item if counts[item] == 1 else f"{item}#{counts[item]}")
    return unique


def _write_bytes(local: Path, data: bytes) -> None:
    local.write_bytes(data)
