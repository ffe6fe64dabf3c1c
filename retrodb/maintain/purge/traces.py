"""Traces: 64-bit values by which a document's content is recognised in any file. They do not reveal the content.

=========  =========================================================================================================
kind       what a value is the hash of
=========  =========================================================================================================
id         a string that is the document's id, or its source and id with a slash between them
key        its key in an ids file
text       the text hash of a chunk, or the content hash of the document
shingle    13 words in a row, or all words of a text that has fewer
tokens     16 tokens in a row
vector     a vector as it is stored, float16, or as the int8 codes or the search codes of an index part
=========  =========================================================================================================

They are stored with the run of a purge: once its documents are deleted, nothing else says what to search for.

Legend: N rows, D dimensions, T tokens.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import orjson
import xxhash

from retrodb.ann.search_codes import CodeForm, unpacked_codes
from retrodb.dedup.shingles import ShingleSets, shingle_sets
from retrodb.format.arrays import AnyArray, BoolArray, Int64Array, UInt64Array, map_array, save_array
from retrodb.format.entries import SpaceEntry
from retrodb.format.json_codec import JsonValue
from retrodb.format.kinds import path_of
from retrodb.maintain.purge.matching import ValueSet, row_values, token_runs
from retrodb.stages.index.live_parts import open_files, parts_of
from retrodb.store.digest import identity
from retrodb.store.publish import publish
from retrodb.store.storage import Storage
from retrodb.view.chunk_set import ChunkSet
from retrodb.view.document_blocks import document_texts
from retrodb.view.view import SELF, View

KINDS = ("id", "key", "text", "shingle", "tokens", "vector")
TRACE_DTYPE = np.dtype([("kind", "u1"), ("value", "<u8")])
_DELIMITERS = re.compile(r"[\'\"/\\,=()\n\t|]+")


@dataclass(frozen=True)
class Traces:
    """Values to search for, by kind; each ascending and distinct."""

    values: Mapping[str, UInt64Array]

    @staticmethod
    def of(values: Mapping[str, Iterable[UInt64Array]]) -> Traces:
        """From arrays of values in any order."""
        parts = {kind: [np.empty(0, np.uint64), *values.get(kind, ())] for kind in KINDS}
        return Traces({kind: np.unique(np.concatenate(arrays)) for kind, arrays in parts.items()})

    def contains(self, kind: str, values: UInt64Array) -> BoolArray:
        """(N,) bool: which values are traces of a kind."""
        return self.sets[kind].contains(values)

    @cached_property
    def sets(self) -> Mapping[str, ValueSet]:
        """The values of each kind, ready to be compared with very many."""
        return {kind: ValueSet.of(values) for kind, values in self.values.items()}

    @property
    def id(self) -> str:
        """A name of exactly these values."""
        return identity(hashlib.sha256(self.to_array().tobytes()).hexdigest())

    def to_array(self) -> AnyArray:
        """(n,) TRACE_DTYPE, to be stored."""
        array = np.empty(sum(map(len, self.values.values())), TRACE_DTYPE)
        array["kind"] = np.repeat(np.arange(len(KINDS)), [len(self.values[kind]) for kind in KINDS])
        array["value"] = np.concatenate([self.values[kind] for kind in KINDS])
        return array

    @staticmethod
    def from_arrays(arrays: Iterable[AnyArray]) -> Traces:
        """The traces of several stored arrays."""
        entries = np.concatenate([np.empty(0, TRACE_DTYPE), *arrays])
        return Traces.of({kind: [entries["value"][entries["kind"] == number]] for number, kind in enumerate(KINDS)})


def store_traces(storage: Storage, run: str, traces: Traces) -> None:
    """Keep traces with a run, in addition to those that it has."""
    array = traces.to_array()
    path = path_of("runs", run=run, file=f"traces/{identity(array.tobytes().hex())}.npy")
    publish(storage, "runs", path, lambda local: save_array(local, array))


def stored_traces(storage: Storage, run: str) -> Traces:
    """All traces that a run has stored, also in earlier attempts."""
    paths = storage.list(path_of("runs", run=run, file="traces"))
    return Traces.from_arrays([map_array(storage.local(path)) for path in paths])


def traces_of(view: View, query_set: str, first_chunks: Int64Array) -> Traces:
    """The traces of documents of a query set, deleted or not, by the ids of their first chunks."""
    chunks = view.query_set(query_set)
    documents = [document for document in chunks.documents(first_chunks) if document is not None]
    spans = [np.arange(d["first_chunk"], d["first_chunk"] + d["num_chunks"]) for d in documents]
    sets = shingle_sets(document_texts(chunks, first_chunks))
    ids = np.concatenate([np.empty(0, np.int64), *spans])
    return Traces.of(
        {
            "text": [
                first_halves(chunks.text_hashes(ids)),
                first_halves(np.array([document["content_hash"] for document in documents], dtype="S16")),
            ],
            "shingle": [sets.keys, whole_keys(sets)],
            "tokens": [token_runs(_tokens(chunks, span)) for span in spans],
            "vector": list(_vectors(view, query_set, ids)),
        }
    )


def _tokens(chunks: ChunkSet, ids: Int64Array) -> AnyArray:
    """(T,) the tokens of a document, deleted or not."""
    batch = chunks.gather_tokens(ids, deleted_too=True)
    inside = np.arange(batch.tokens.shape[1]) < batch.lengths[:, None]
    tokens: AnyArray = batch.tokens[inside]
    return tokens


def _vectors(view: View, query_set: str, ids: Int64Array) -> Iterable[UInt64Array]:
    """The vectors in every space, and the codes of the index parts: a space may have stored only these."""
    for space in view.snapshot.names(SpaceEntry):
        for hit in view.query_vectors(query_set, space).lookup(ids):
            if hit.record.kind != "parts":
                yield row_values(view.chunks.map(hit.record)[hit.positions])
        for files in parts_of(view, space) if query_set == SELF else ():
            inside = ids[(ids >= files.span.first_chunk) & (ids < files.span.end)]
            rows = files.row_set(view.files).rank(inside - files.span.first_chunk)
            if not len(rows := rows[rows >= 0]):
                continue
            part = open_files(view.files, files)
            positions = np.flatnonzero(np.isin(part.order_N.whole(), rows))
            yield row_values(part.codes_ND[positions])
            codes = part.search_codes.rows(positions)
            yield row_values(codes if codes.dtype == np.uint8 else codes.astype(np.float16))


def search_code_values(block: AnyArray) -> UInt64Array:
    """(n,) the values of some rows of an array of search codes; of a block of packed codes, one after the other.

    Raises:
        ValueError: these are no search codes.
    """
    form = CodeForm.of(block.dtype, block.shape)
    if form.kind == "vectors":
        return row_values(block.astype(np.float16))
    return row_values(unpacked_codes(block, form) if form.is_packed else block)


def first_halves(hashes: AnyArray) -> UInt64Array:
    """(N,) the upper halves of hashes of 16 bytes."""
    halves: UInt64Array = np.frombuffer(np.ascontiguousarray(hashes).tobytes(), ">u8")[::2].astype(np.uint64)
    return halves


def whole_keys(sets: ShingleSets) -> UInt64Array:
    """The keys of the texts that have fewer words than a shingle."""
    keys: UInt64Array = sets.whole_keys[sets.whole_keys != 0]
    return keys


def string_values(strings: Iterable[str]) -> UInt64Array:
    """(N,) one value per string."""
    return np.array([xxhash.xxh3_64_intdigest(string.encode()) for string in strings], dtype=np.uint64)


def string_pieces(text: str) -> list[str]:
    """A string, and the parts of it that may be an id: between the delimiters of paths, SQL and arguments."""
    parts = (part.strip() for part in _DELIMITERS.split(text))
    ends = (text[i + 1 :] for i, char in enumerate(text) if char == "/")  # an id may be a path below a folder
    return list(dict.fromkeys([text, *ends, *(part for part in parts if part)]))


def json_strings(text: str | bytes) -> list[str]:
    """All strings in a JSON text, including the keys.

    Raises:
        orjson.JSONDecodeError: when it is not JSON.
    """
    return list(_strings_in(orjson.loads(text)))


def _strings_in(value: JsonValue) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from value
        for item in value.values():
            yield from _strings_in(item)
    elif isinstance(value, list):
        for item in value:
            yield from _strings_in(item)
