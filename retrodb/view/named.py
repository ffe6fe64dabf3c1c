"""Documents by their names. A name is an id, or an id with its source.

A name that stands for documents of several sources is ambiguous. So is an id that can also be read as a source and an id
with a slash between them, which is how documents are printed. Ambiguous names are refused, with the candidates: whoever
deletes must not guess.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from retrodb.errors import UsageError
from retrodb.format.document_keys import IdArray, key_of
from retrodb.printable import escape
from retrodb.view.purged import KEY_DTYPE, entries_with_keys
from retrodb.view.view import View

if TYPE_CHECKING:
    from retrodb.format.arrays import Int64Array

Pair: TypeAlias = tuple[str, str]
"""Source and id of a document."""
_SHOWN = 3  # ambiguous names that a message lists


@dataclass(frozen=True)
class DocumentName:
    """The name of a document, where it is more than an id."""

    doc_id: str
    source: str | None = None  # None is any source

    def __str__(self) -> str:
        """A line of an id list that gives this name."""
        values = {"id": self.doc_id} | ({} if self.source is None else {"source": self.source})
        return json.dumps(values, ensure_ascii=False)


Name: TypeAlias = "str | DocumentName"
"""A text is an id in any source."""


def with_source(names: Iterable[Name] | None, source: str | None) -> list[Name] | None:
    """The names, with a source for those that have none."""
    if names is None:
        return None
    return [name if source is None else _in_source(name, source) for name in names]


def _in_source(name: Name, source: str) -> DocumentName:
    if isinstance(name, DocumentName):
        return name if name.source is not None else DocumentName(name.doc_id, source)
    return DocumentName(name, source)


FindDocuments: TypeAlias = Callable[[Iterable[Pair]], Mapping[Pair, Sequence[int]]]
"""The first chunk ids of all versions of those of some documents that are in a database."""


def documents_named(names: Iterable[Name], sources: Sequence[str], find: FindDocuments) -> tuple[Int64Array, list[str]]:
    """The first chunk ids (Q,) of all versions of the documents of these names, deleted or not, ascending; and unknown names.

    Args:
        sources: all sources.

    Raises:
        UsageError: a name is ambiguous.
    """
    first_chunks: dict[Pair, Sequence[int]] = {}

    def known(pairs: Iterable[Pair]) -> set[Pair]:
        first_chunks.update(find(pairs))
        return set(first_chunks)

    pairs, unknown = resolve(names, sources, known)
    ids = {first for pair in pairs for first in first_chunks[pair]}
    return np.array(sorted(ids), dtype=np.int64), unknown


def resolve(
    names: Iterable[Name], sources: Sequence[str], known: Callable[[Iterable[Pair]], set[Pair]]
) -> tuple[set[Pair], list[str]]:
    """The documents that names mean, and the names that mean none.

    Args:
        sources: all sources.
        known: which of some documents there are.

    Raises:
        UsageError: a name is ambiguous.
    """
    unique = list(dict.fromkeys(names))
    readings = {name: (_as_id(name, sources), _as_source_and_id(name, sources)) for name in unique}
    existing = known({pair for both in readings.values() for pairs in both for pair in pairs})
    meant, unknown, ambiguous = set[Pair](), list[str](), dict[Name, list[Pair]]()
    for name, (as_id, as_source_and_id) in readings.items():
        as_id = [pair for pair in as_id if pair in existing]
        candidates = [*as_id, *(pair for pair in as_source_and_id if pair in existing)]
        if not as_id:  # an id list is ids: "docs/index.md" is never the document "index.md" of "docs"
            unknown.append(str(name))
        elif len(candidates) > 1:
            ambiguous[name] = candidates
        else:
            meant.update(as_id)
    if ambiguous:
        raise _ambiguous(ambiguous)
    return meant, unknown


def first_chunks_of(view: View, names: Sequence[str]) -> dict[str, list[int]]:
    """For every name the first chunk ids of all versions of all documents that it can mean; none for an unknown one.

    These documents are excluded from a search, so that a name means each of its readings: an id in any source, and source
    and id with a slash between them.
    """
    sources = sorted(set(view.shards.source))
    readings = {name: {*_as_id(name, sources), *_as_source_and_id(name, sources)} for name in dict.fromkeys(names)}
    found = _lookup(view, {pair for pairs in readings.values() for pair in pairs})
    return {name: sorted(first for pair in pairs for first in found.get(pair, ())) for name, pairs in readings.items()}


def _as_id(name: Name, sources: Sequence[str]) -> list[Pair]:
    doc_id, source = (name, None) if isinstance(name, str) else (name.doc_id, name.source)
    return [(own, doc_id) for own in (sources if source is None else [source])]


def _as_source_and_id(name: Name, sources: Sequence[str]) -> list[Pair]:
    if not isinstance(name, str):
        return []
    cuts = [position for position, character in enumerate(name) if character == "/"]
    return [(name[:cut], name[cut + 1 :]) for cut in cuts if name[:cut] in sources]


def _ambiguous(names: Mapping[Name, Sequence[Pair]]) -> UsageError:
    listed = "; ".join(
        f"'{escape(str(name))}' is {' or '.join(str(DocumentName(doc_id, source)) for source, doc_id in pairs)}"
        for name, pairs in list(names.items())[:_SHOWN]
    )
    more = f"; and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
    subject = "1 name is ambiguous" if len(names) == 1 else f"{len(names):,} names are ambiguous"
    remedy = "Write one of these forms instead of the name, or name the source of all ids with --source."
    return UsageError(f"{subject}: {listed}{more}", remedy=remedy)


def _lookup(view: View, pairs: Iterable[Pair]) -> dict[Pair, list[int]]:
    """The first chunk ids of all versions of those of some documents that are in the database.

    The keys of these documents are searched in one shard after another. A short list reads few pages of each.
    """
    wanted = keys_of_pairs(pairs)
    first_chunks: dict[Pair, list[int]] = defaultdict(list)
    for record in view.coverage("ids").records if wanted else ():
        entries = view.files.array(record)
        hits = entries[entries_with_keys(entries, key_array(wanted))]
        ids = hits["row"] + record.first_chunk
        exists = view.chunks.document_ids(ids) == ids  # compaction keeps the keys of some documents that are gone
        for hit, first in zip(hits[exists], ids[exists].tolist(), strict=True):
            first_chunks[wanted[key_number(hit)]].append(first)
    return dict(first_chunks)


def keys_of_pairs(pairs: Iterable[Pair]) -> dict[int, Pair]:
    """Documents by their keys, as `key_of` gives them."""
    return {key_of(*pair): pair for pair in pairs}


def key_array(keys: Iterable[int]) -> IdArray:
    """(K,) KEY_DTYPE: keys as `key_of` gives them, sorted."""
    halves = [divmod(key, 1 << 64) for key in sorted(keys)]
    return np.array(halves, dtype=KEY_DTYPE)


def key_number(entry: IdArray) -> int:
    """The key of an entry, as `key_of` gives it."""
    return int(entry["key_hi"]) << 64 | int(entry["key_lo"])
