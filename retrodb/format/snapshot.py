"""A snapshot: one version of the database, as a small JSON file.

The manifest proper is in Parquet segments that the snapshot names by digest. What is small and named (spaces, test sets,
query sets, sources, tables, pins) stands in the snapshot itself as *entries*: a flat mapping `kind/name -> object`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import orjson

from retrodb.errors import DamagedFileError, FormatVersionError
from retrodb.format import FORMAT_VERSION
from retrodb.format.kinds import path_of

ENTRY_KINDS = (
    *("space", "index", "testset", "queries", "source", "table"),
    *("attribute", "pin", "export", "duplicates", "default", "drift"),
)
"""First parts of entry keys; `default/space` holds the name of the default space."""


@dataclass(frozen=True)
class SegmentRef:
    """A manifest segment, named by what is in it."""

    digest: str  # SHA-256 of the segment file, hexadecimal: also its name
    records: int  # number of records


@dataclass(frozen=True)
class Snapshot:
    """One version of the database."""

    number: int  # never used again, even after the snapshot expired
    parent: int  # the snapshot it was made from, -1 for the first
    transaction: str  # identity of the commit: found again after an ambiguous error
    command: str  # what made it, such as "ingest"
    arguments: Mapping[str, Any]  # its resolved parameters
    clock: str  # UTC time of the command's plan, ISO 8601
    next_chunk: int  # the first chunk id that was never given
    writes: tuple[str, ...]  # what the commit changed, for later commits to compare with what they read
    segments: tuple[SegmentRef, ...]  # the manifest, oldest first
    entries: Mapping[str, Any] = field(default_factory=dict)  # named things, see the module's docstring
    counts: Mapping[str, int] = field(default_factory=dict)  # what the command reported
    totals: Mapping[str, int] = field(default_factory=dict)  # shards, documents, chunks, files, bytes ever added
    expired_at: str | None = None  # when collection left only this stub, without entries and arguments
    format_version: int = FORMAT_VERSION

    @property
    def path(self) -> str:
        """Where the snapshot lies in the database."""
        return snapshot_path(self.number)

    def stub(self, at: str) -> Snapshot:
        """What is left of it when it expires; its segments are named still, so that nobody takes them for lost."""
        return replace(self, entries={}, arguments={}, expired_at=at)

    def names(self, kind: str) -> list[str]:
        """The names of all entries of a kind, sorted."""
        return sorted(key.partition("/")[2] for key in self.entries if key.startswith(f"{kind}/"))

    def entry(self, kind: str, name: str) -> Any:
        """An entry, or None."""
        return self.entries.get(f"{kind}/{name}")

    @property
    def default_space(self) -> str:
        """The space that commands use when none is named."""
        return str(self.entries.get("default/space", "default"))


def snapshot_path(number: int) -> str:
    """The path of snapshot `number`: twenty digits, so that names sort as numbers do."""
    return path_of("snapshots", number=f"{number:020d}")


def snapshot_number(path: str) -> int | None:
    """The number in a snapshot's path, None for any other file."""
    name = path.rpartition("/")[2]
    return int(name[:20]) if len(name) == 25 and name.endswith(".json") and name[:20].isdigit() else None


def dump_snapshot(snapshot: Snapshot) -> bytes:
    """The bytes of a snapshot file; its last field is the SHA-256 of all before it, in every format version."""
    body = orjson.dumps(asdict(snapshot), option=orjson.OPT_SORT_KEYS)
    return body[:-1] + b',"sha256":"' + hashlib.sha256(body).hexdigest().encode() + b'"}\n'


def parse_snapshot(data: bytes, *, where: str) -> Snapshot:
    """Read a snapshot file.

    Raises:
        DamagedFileError: when its checksum is wrong.
        FormatVersionError: when a newer retrodb wrote it.
    """
    body, _, tail = data.rpartition(b',"sha256":"')
    if tail != hashlib.sha256(body + b"}").hexdigest().encode() + b'"}\n':
        raise DamagedFileError(
            "damaged snapshot (checksum mismatch)",
            where=where,
            remedy="Restore this file from a backup, or read an older version with '--as-of'.",
        )
    values = orjson.loads(body + b"}")
    if values["format_version"] > FORMAT_VERSION:
        raise FormatVersionError(
            f"written in format version {values['format_version']}, newer than {FORMAT_VERSION}",
            where=where,
            remedy="Install a newer retrodb: pip install --upgrade retrodb.",
        )
    values["segments"] = tuple(SegmentRef(**ref) for ref in values["segments"])
    values["writes"] = tuple(values["writes"])
    return Snapshot(**values)
