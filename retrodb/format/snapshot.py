"""A snapshot: one version of the database, as a small JSON file.

The manifest proper is in Parquet segments that the snapshot names by digest. What is small and named (spaces, test sets,
query sets, sources, tables, pins) stands in the snapshot itself as *entries*, see `entries.py`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import TypeVar

import msgspec

from retrodb.config import EmbedParams
from retrodb.errors import DamagedFileError, FormatVersionError, MissingStep
from retrodb.format import FORMAT_VERSION
from retrodb.format.entries import (
    DEFAULT_ENCODER_KEY,
    DEFAULT_SPACE_KEY,
    DefaultEncoder,
    DefaultSpace,
    Entry,
    SpaceEntry,
    dump_entry,
    entry_key,
    parse_entry,
)
from retrodb.format.json_codec import JsonValue, to_json
from retrodb.format.kinds import path_of

E = TypeVar("E", bound=Entry)


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
    arguments: Mapping[str, JsonValue]  # its resolved parameters
    clock: str  # UTC time of the command's plan, ISO 8601
    next_chunk: int  # the first chunk id that was never given
    writes: tuple[str, ...]  # what the commit changed, for later commits to compare with what they read
    segments: tuple[SegmentRef, ...]  # the manifest, oldest first
    entries: Mapping[str, Entry] = field(default_factory=dict)  # by key, see `entries.py`
    counts: Mapping[str, int] = field(default_factory=dict)  # what the command reported
    totals: Mapping[str, int] = field(default_factory=dict)  # shards, documents, chunks, files, bytes ever added
    expired_at: str | None = None  # when collection left only this stub, without entries and arguments
    format_version: int = FORMAT_VERSION

    @property
    def path(self) -> str:
        """Path of the snapshot in the database."""
        return snapshot_path(self.number)

    def stub(self, at: str) -> Snapshot:
        """The stub that stays when it expires; it still names its segments, so that `check` does not report them as lost."""
        return replace(self, entries={}, arguments={}, expired_at=at)

    def names(self, kind: type[Entry]) -> list[str]:
        """The names of all entries of a kind, sorted."""
        return sorted(key.partition("/")[2] for key in self.entries if key.startswith(entry_key(kind, "")))

    def entry(self, kind: type[E], name: str) -> E | None:
        """An entry, or None."""
        entry = self.entries.get(entry_key(kind, name))
        return entry if isinstance(entry, kind) else None

    def existing(self, kind: type[E], name: str) -> E:
        """An entry that must be there. Raises MissingStep."""
        if (entry := self.entry(kind, name)) is None:
            have = ", ".join(self.names(kind)) or "none yet"
            raise MissingStep(f"no {kind.kind} '{name}'", remedy=f"There are: {have}.")
        return entry

    @property
    def default_space(self) -> str:
        """The space that commands use when none is named."""
        entry = self.entries.get(DEFAULT_SPACE_KEY)
        return entry.name if isinstance(entry, DefaultSpace) else "default"

    def embed_params(self, space: str) -> EmbedParams | None:
        """The parameters of a space, or those that the default space will get; None where no encoder is known."""
        if entry := self.entry(SpaceEntry, space):
            return entry.params
        default = self.default_encoder if space == self.default_space else None
        return default.params if default else None

    @property
    def default_encoder(self) -> DefaultEncoder | None:
        """The encoder that the default space will get."""
        entry = self.entries.get(DEFAULT_ENCODER_KEY)
        return entry if isinstance(entry, DefaultEncoder) else None


def snapshot_path(number: int) -> str:
    """The path of snapshot `number`: twenty digits, so that names sort as numbers do."""
    return path_of("snapshots", number=f"{number:020d}")


def snapshot_number(path: str) -> int | None:
    """The number in a snapshot's path, None for any other file."""
    name = path.rpartition("/")[2]
    return int(name[:20]) if len(name) == 25 and name.endswith(".json") and name[:20].isdigit() else None


def dump_snapshot(snapshot: Snapshot) -> bytes:
    """The bytes of a snapshot file; its last field is the SHA-256 of all before it, in every format version."""
    entries = {key: dump_entry(entry) for key, entry in snapshot.entries.items()}
    body = to_json({**asdict(replace(snapshot, entries={})), "entries": entries})
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
            remedy="Restore this file from a backup, or read an older snapshot, such as with 'retrodb sql --as-of N'.",
        )
    values = msgspec.json.decode(body + b"}")
    if values["format_version"] > FORMAT_VERSION:
        raise FormatVersionError(
            f"written in format version {values['format_version']}, newer than {FORMAT_VERSION}",
            where=where,
            remedy="Install a newer retrodb: pip install --upgrade retrodb.",
        )
    entries = {key: parse_entry(key, value, where=where) for key, value in values.pop("entries").items()}
    segments = tuple(SegmentRef(**segment) for segment in values.pop("segments"))
    return Snapshot(**{**values, "writes": tuple(values["writes"])}, segments=segments, entries=entries)
