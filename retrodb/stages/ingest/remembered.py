"""The options that decide how the files of a source are read: a source remembers them.

A later ingest takes the remembered value of an option that it is not given. Another value that would replace or remove
documents, or read a file a second time under other options, is refused, unless the caller asks for that change. Otherwise a
forgotten option would supersede a whole source in silence.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from retrodb.config import IngestParams, from_mapping, to_mapping
from retrodb.errors import UsageError
from retrodb.format.entries import SourceEntry
from retrodb.format.json_codec import JsonObject, JsonValue
from retrodb.printable import escape
from retrodb.view.view import View

READING_OPTIONS = (
    *("format", "id_field", "text_field", "key_field", "value_field", "metadata_fields", "drop_metadata"),
    *("include", "exclude", "marker", "front_matter", "max_document_chars", "oversize", "max_record_bytes"),
)
"""Fields of `IngestParams` that a source remembers. The others say what one run does."""

_FLAGS = {"metadata_fields": "--metadata-field"}


@dataclass(frozen=True)
class OptionChange:
    """An option that is not what the source remembers."""

    name: str  # field of `IngestParams`
    remembered: JsonValue
    value: JsonValue

    def __str__(self) -> str:
        return f"{_flag(self.name)} was {_shown(self.remembered)} and is now {_shown(self.value)}"


@dataclass(frozen=True)
class ReadingOptions:
    """The options of an ingest, compared with what its source remembers."""

    params: IngestParams  # with the remembered values of options that were not given
    changes: tuple[OptionChange, ...]
    notes: tuple[str, ...]  # for the user


@dataclass(frozen=True)
class ChangeCounts:
    """What an ingest with other options would do to a source."""

    num_superseded: int
    num_removed: int  # by --mirror
    num_added: int  # documents of files that were ingested whole with the remembered options

    def __bool__(self) -> bool:
        return any(vars(self).values())

    def __str__(self) -> str:
        parts = (
            (self.num_superseded, "documents would be superseded"),
            (self.num_removed, "documents would be removed"),
            (self.num_added, "documents would be added although their files were ingested before"),
        )
        return ", ".join(f"{count:,} {what}" for count, what in parts if count)


def reading_options(params: IngestParams) -> JsonObject:
    """The options that a source remembers, as plain values."""
    plain = to_mapping(params)
    return {name: plain[name] for name in READING_OPTIONS}


def resolve_options(view: View, params: IngestParams, given: Collection[str] | None) -> ReadingOptions:
    """Compare options with those of the last ingest of the source.

    Args:
        given: names of the options that the caller gave. The others take the remembered value. None: all were given. An
            empty text among them stands for the default.
    """
    params = _with_defaults(params)
    entry = view.snapshot.entry(SourceEntry, params.source)
    remembered: Mapping[str, JsonValue] = (entry and entry.options) or {}
    now = reading_options(params)
    taken = {
        name: value
        for name, value in remembered.items()
        if name in now and given is not None and name not in given and value != now[name]
    }
    if taken:
        merged = from_mapping(IngestParams, {**to_mapping(params), **taken}, where=f"source '{params.source}'")
        params, now = merged, reading_options(merged)
    changes = tuple(
        OptionChange(name, value, now[name]) for name, value in remembered.items() if name in now and value != now[name]
    )
    notes = []
    if taken:
        values = ", ".join(f"{_flag(name)} {_shown(value)}" for name, value in taken.items())
        notes.append(f"As in the last ingest of source '{escape(params.source)}': {values}.")
    if changes:
        notes.append(f"Other options than in the last ingest of source '{escape(params.source)}': {_listed(changes)}.")
    return ReadingOptions(params, changes, tuple(notes))


def refuse_change(source: str, changes: Sequence[OptionChange], counts: ChangeCounts) -> None:
    """Raises UsageError when other options than the remembered ones would change what the source has."""
    if changes and counts:
        raise UsageError(
            f"other options than in the last ingest of this source: {_listed(changes)}; {counts}",
            where=f"source '{source}'",
            remedy="Leave these options out to read the source as before, or add '--change-options' to change it.",
        )


def _with_defaults(params: IngestParams) -> IngestParams:
    """An empty text stands for the default, so that an option that is remembered can be taken back."""
    plain = to_mapping(params)
    kept = {name: value for name, value in plain.items() if name not in READING_OPTIONS or value not in ("", [""])}
    return params if len(kept) == len(plain) else from_mapping(IngestParams, kept, where="options")


def _listed(changes: Sequence[OptionChange]) -> str:
    return ", ".join(map(str, changes))


def _flag(name: str) -> str:
    return _FLAGS.get(name, f"--{name.replace('_', '-')}")


def _shown(value: JsonValue) -> str:
    if value is None or value == []:
        return "not set"
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, list | tuple):
        return " ".join(f"'{escape(str(element))}'" for element in value)
    return f"'{escape(value)}'" if isinstance(value, str) else str(value)
