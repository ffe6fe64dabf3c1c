"""Registering a test set: its items and shingle table become files of the database, so that every later document meets them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from retrodb.config import DedupParams, to_mapping
from retrodb.dedup.rule import parse_rule
from retrodb.dedup.shingles import SHINGLE_VERSION, check_ngram
from retrodb.dedup.testtable import TestTable, build_table, load_table, save_table
from retrodb.errors import UsageError
from retrodb.format.kinds import path_of
from retrodb.format.parquet import write_table
from retrodb.format.records import FileRecord
from retrodb.store.digest import digest_bytes, identity
from retrodb.store.publish import publish
from retrodb.store.storage import Storage
from retrodb.view.view import View

if TYPE_CHECKING:
    import pyarrow as pa

TABLE_FILES = tuple(field.name for field in fields(TestTable))


@dataclass(frozen=True)
class TestSet:
    """A test set that is about to be registered."""

    __test__ = False  # pytest: no test class

    name: str
    digest: str  # of items and rule: another digest has to be screened again
    entry: dict[str, Any]  # what the snapshot keeps
    files: tuple[FileRecord, ...]  # published


def check_params(params: DedupParams) -> None:
    """Raises UsageError for a rule, level or n-gram that cannot be meant."""
    rule = parse_rule(params.rule)
    check_ngram(params.ngram)
    if params.level not in ("document", "chunk"):
        raise UsageError(f"unknown level '{params.level}'", remedy="It is 'document' or 'chunk'.")
    if params.short_texts not in ("report", "remove"):
        raise UsageError(
            f"unknown treatment '{params.short_texts}' of short texts", remedy="It is 'report' or 'remove'."
        )
    if params.max_document_frequency is not None and rule.measure != "containment":
        raise UsageError(
            "--max-document-frequency belongs to containment rules; the paper's rule counts every shingle",
            remedy="Leave it out, or give --rule 'containment>=X'.",
        )


def register(
    storage: Storage, name: str, ids: Sequence[str], texts: pa.LargeStringArray, params: DedupParams
) -> TestSet:
    """Publish a test set's files.

    Raises:
        UsageError: for a test set without items, or a name that cannot be a folder.
    """
    import pyarrow as pa

    if not name or "/" in name or name.startswith("."):
        raise UsageError(f"'{name}' cannot name a test set", remedy="Give a short --name without '/'.")
    if not ids:
        raise UsageError(f"test set '{name}' has no items", remedy="Look at the files given to --against.")
    items = pa.table({"id": pa.array(list(ids), pa.string()), "text": texts})
    content = digest_bytes("\0".join([*ids, *texts.to_pylist()]).encode()).sha256.hex()
    digest = identity(content, to_mapping(params), SHINGLE_VERSION)
    path = partial(path_of, "testsets", name=name, task=digest)
    files = [publish(storage, "testsets", path(file="items.parquet"), partial(write_table, table=items), name=name)]
    with TemporaryDirectory() as folder:
        save_table(build_table(texts, ids, params.ngram), Path(folder))
        for field in TABLE_FILES:
            data = (Path(folder) / f"{field}.npy").read_bytes()
            files.append(
                publish(storage, "testsets", path(file=f"{field}.npy"), partial(_write_bytes, data=data), name=name)
            )
    entry = {"digest": digest, "items": len(ids), "params": to_mapping(params)}
    return TestSet(name, digest, entry, tuple(files))


def open_table(view: View, name: str) -> TestTable:
    """The table of a registered test set, verified and memory-mapped."""
    digest = view.snapshot.entry("testset", name)["digest"]
    folder = path_of("testsets", name=name, task=digest, file="")
    paths = [view.files.open(r) for r in view.manifest.files("testsets", name) if r.path.startswith(folder)]
    return load_table(paths[0].parent)


def _write_bytes(local: Path, data: bytes) -> None:
    local.write_bytes(data)
