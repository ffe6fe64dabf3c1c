"""The proof of a purge: everything that lies in the database's folder is decoded and searched for traces of what was purged.

What live documents have in common with a purged one (a quotation, a licence, the same article under another id) is theirs and
does not count: these documents are named instead.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson

from retrodb.dedup.shingles import shingle_sets
from retrodb.engine.progress import Progress
from retrodb.errors import DamagedFileError, MissingFileError
from retrodb.format.arrays import AnyArray, UInt64Array, map_array
from retrodb.format.parquet import iterate_row_groups
from retrodb.format.part_files import INDEX_FILE
from retrodb.maintain.purge.live_rows import UNOWNED, LiveRows, RowOwnership
from retrodb.maintain.purge.traces import (
    Traces,
    first_halves,
    index_values,
    row_values,
    string_pieces,
    string_values,
    token_runs,
)
from retrodb.store.storage import Storage
from retrodb.view.view import View

if TYPE_CHECKING:
    import pyarrow as pa

_BLOCK_ROWS = 1 << 15
_SHOWN = 10  # live documents that are named because they share text
_SKIPPED = ("purged/", "locks/", "retrodb.toml", "tokenizer.json")
"""Keys that keep what was purged away, who holds a lock, and what is older than any document and never changes."""
_MIN_ID_CHARS = 4  # a shorter id is looked for where ids stand, and not among all the words of a plan or a path
_IDS_IN = ("path",)  # columns whose strings may hold an id as a part


@dataclass(frozen=True)
class RemainingTrace:
    """A trace of a purged document that is still there."""

    path: str
    place: str
    what: str  # kind of trace
    count: int


@dataclass(frozen=True)
class Shared:
    """A live document that has text in common with a purged one."""

    source: str
    doc_id: str
    shingles: int  # in common


@dataclass(frozen=True)
class Proof:
    """What was looked for, looked through, and found."""

    files: int
    size_bytes: int
    looked_for: Mapping[str, int]  # traces by kind
    looked_through: Mapping[str, int]  # values compared, by kind
    left: tuple[RemainingTrace, ...]  # empty when all is gone
    shared_documents: int  # live documents with some of the same 13 words in a row
    shared: tuple[Shared, ...]  # the most of these


@dataclass(frozen=True)
class _Hit:
    """Some values of one kind that were found in one column."""

    path: str
    place: str
    what: str
    values: UInt64Array
    rows: AnyArray


def run_proof(view: View, traces: Traces, names: set[str], progress: Progress, *, skip: str = "") -> Proof:
    """Search all files of a database.

    Args:
        names: the ids that the traces stand for, as strings: files of text are searched for these.
        skip: beginning of the paths of the traces' own files.
    """
    paths = [path.removeprefix("./") for path in view.storage.list("")]
    paths = [path for path in paths if not path.startswith((*_SKIPPED, skip) if skip else _SKIPPED)]
    look = TraceScanner(view, traces, names)
    sizes = [_size(view.storage, path) for path in paths]
    with progress.stage("proof", sum(sizes), "B") as bar:
        for path, size in zip(paths, sizes, strict=True):
            look.at(path)
            bar.advance(size)
    return look.proof(len(paths), sum(sizes))


def _size(storage: Storage, path: str) -> int:
    try:
        return storage.local(path).stat().st_size
    except MissingFileError:  # gone since it was listed
        return 0


class TraceScanner:
    """Goes through files and remembers what it met."""

    def __init__(self, view: View, traces: Traces, names: set[str]) -> None:
        self._view, self._traces, self._names = view, traces, names
        self._live = LiveRows(view)
        self._hits: list[_Hit] = []
        self._owned: dict[str, list[UInt64Array]] = defaultdict(list)
        self._shared: Counter[int] = Counter()
        self._seen: Counter[str] = Counter()
        self._unread: list[RemainingTrace] = []

    def at(self, path: str) -> None:
        """Look into one file."""
        readers = {"parquet": self._parquet, "arrow": self._arrow, "npy": self._npy, "json": self._json}
        ending = path.rpartition(".")[2]
        try:
            local = self._view.storage.local(path)
            if path.startswith("tmp/"):
                self._unread.append(RemainingTrace(path, "-", "unfinished file", 1))
            elif ending in readers:
                readers[ending](path, local)
            elif path.endswith("/" + INDEX_FILE):
                self._index(path, local)
            elif ending != "faiss":  # a codebook: it holds no rows
                self._other(path, local)
        except MissingFileError:  # another command deleted it meanwhile
            return
        except (DamagedFileError, orjson.JSONDecodeError):
            self._unread.append(RemainingTrace(path, "-", "cannot be read", 1))

    def proof(self, files: int, size_bytes: int) -> Proof:
        """What was found in all files."""
        left = []
        for hit in self._hits:
            owned = np.concatenate([np.empty(0, np.uint64), *self._owned[hit.what]])
            own = ~np.isin(hit.values, owned)
            if own.any():
                place = f"{hit.place}, row {int(hit.rows[own][0])}"
                left.append(RemainingTrace(hit.path, place, hit.what, int(own.sum())))
        shared = self._view.chunks.documents(np.array([d for d, _ in self._shared.most_common(_SHOWN)], np.int64))
        counts = [count for _, count in self._shared.most_common(_SHOWN)]
        named = [Shared(d["source"], d["doc_id"], n) for d, n in zip(shared, counts, strict=True) if d is not None]
        looked_for = {kind: len(values) for kind, values in self._traces.values.items()}
        return Proof(
            files, size_bytes, looked_for, dict(self._seen), (*left, *self._unread), len(self._shared), tuple(named)
        )

    def _compare(
        self, path: str, place: str, what: str, values: UInt64Array, rows: AnyArray, owners: RowOwnership
    ) -> None:
        """Hold values (N,) of some rows (N,) against the traces."""
        self._seen[what] += len(values)
        found = self._traces.found(what, values)
        if not found.any():
            return
        values, rows = values[found], rows[found]
        is_live = owners.live(rows)
        self._owned[what].append(values[is_live])
        if what == "shingle" and owners.documents is not None:
            pairs = np.unique(np.stack([owners.documents[rows[is_live]], values[is_live].view(np.int64)]), axis=1)
            self._shared.update(pairs[0].tolist())
        if not is_live.all():
            self._hits.append(_Hit(path, place, what, values[~is_live], rows[~is_live]))

    def _parquet(self, path: str, local: Path) -> None:
        owners, start = self._live.of(path), 0
        for table in iterate_row_groups(local):
            self._table(path, table, owners, start)
            start += table.num_rows

    def _arrow(self, path: str, local: Path) -> None:
        import pyarrow as pa

        try:
            with pa.memory_map(str(local)) as source:
                reader, start = pa.ipc.open_file(source), 0
                for number in range(reader.num_record_batches):
                    table = pa.table(reader.get_batch(number))
                    self._table(path, table, UNOWNED, start)
                    start += table.num_rows
        except pa.ArrowException as error:
            raise DamagedFileError("not an Arrow file", where=path) from error

    def _table(self, path: str, table: pa.Table, owners: RowOwnership, start: int) -> None:
        for name in table.column_names:
            column = table.column(name).combine_chunks()
            rows = start + np.arange(len(column))
            self._column(path, f"column {name}", column, rows, owners, is_path=name in _IDS_IN)

    def _column(
        self, path: str, place: str, column: pa.Array, rows: AnyArray, owners: RowOwnership, *, is_path: bool = False
    ) -> None:
        """Look at the values of a column, or of lists in it; `rows` says which row each is of."""
        import pyarrow as pa
        import pyarrow.compute as pc
        import pyarrow.types as types

        if types.is_large_list(column.type) or types.is_list(column.type) or types.is_fixed_size_list(column.type):
            if types.is_integer(column.type.value_type):
                self._token_lists(path, place, column, rows, owners)
                return
            self._column(path, place, column.flatten(), rows[pc.list_parent_indices(column).to_numpy()], owners)
        elif types.is_string(column.type) or types.is_large_string(column.type):
            self._strings(path, place, column.fill_null("").cast(pa.large_string()), rows, owners, is_path=is_path)
        elif types.is_fixed_size_binary(column.type) and column.type.byte_width == 16 and column.null_count == 0:
            hashes = np.array(column.to_pylist(), dtype="S16")
            self._compare(path, place, "text", first_halves(hashes), rows, owners)

    def _token_lists(self, path: str, place: str, column: pa.Array, rows: AnyArray, owners: RowOwnership) -> None:
        import pyarrow.compute as pc

        flat = column.flatten().to_numpy(zero_copy_only=False)
        of_value = pc.list_parent_indices(column).to_numpy()
        runs = token_runs(flat)
        inside = of_value[: len(runs)] == of_value[len(of_value) - len(runs) :]  # a run does not go on in the next list
        self._compare(path, place, "tokens", runs[inside], rows[of_value[: len(runs)][inside]], owners)

    def _strings(
        self, path: str, place: str, strings: pa.Array, rows: AnyArray, owners: RowOwnership, *, is_path: bool
    ) -> None:
        import pyarrow as pa
        import pyarrow.compute as pc

        if is_path:
            pieces = [_ids_in(text) for text in strings.to_pylist()]
            of_row = np.repeat(rows, [len(own) for own in pieces])
            self._ids(path, place, [piece for own in pieces for piece in own], of_row, owners)
        elif self._names:
            equal = np.flatnonzero(pc.is_in(strings, value_set=pa.array(sorted(self._names), strings.type)))
            self._seen["id"] += len(strings) - len(equal)
            self._ids(path, place, strings.take(pa.array(equal)).to_pylist(), rows[equal], owners)
        sets = shingle_sets(strings)
        of_key = np.repeat(np.arange(len(strings)), sets.sizes())
        self._compare(path, place, "shingle", sets.keys, rows[of_key], owners)
        short = np.flatnonzero(sets.whole_keys)
        self._compare(path, place, "shingle", sets.whole_keys[short], rows[short], owners)

    def _ids(self, path: str, place: str, strings: list[str], rows: AnyArray, owners: RowOwnership) -> None:
        self._compare(path, place, "id", string_values(strings), rows, owners)

    def _npy(self, path: str, local: Path) -> None:
        array, owners = map_array(local), self._live.of(path)
        for start in range(0, len(array), _BLOCK_ROWS):
            block = np.asarray(array[start : start + _BLOCK_ROWS])
            for what, values, rows in _array_values(block):
                self._compare(path, "array", what, values, start + rows, owners)

    def _index(self, path: str, local: Path) -> None:
        values, owners = index_values(local), self._live.of(path)
        if owners.is_live is not None and len(owners.is_live) != len(values):
            owners = UNOWNED  # other rows than the snapshot says: nobody's
        self._compare(path, "index", "vector", values, np.arange(len(values)), owners)

    def _json(self, path: str, local: Path) -> None:
        import pyarrow as pa

        strings = list(_strings_of(orjson.loads(local.read_bytes())))
        texts = pa.array(strings, pa.large_string())
        self._strings(path, "JSON", texts, np.arange(len(strings)), UNOWNED, is_path=True)

    def _other(self, path: str, local: Path) -> None:
        import pyarrow as pa

        try:
            lines = local.read_bytes().decode().splitlines()
        except UnicodeDecodeError:
            self._unread.append(RemainingTrace(path, "-", "cannot be read", 1))
            return
        strings = [string for line in lines for string in [line, *_json_strings(line)]]
        texts = pa.array(strings, pa.large_string())
        self._strings(path, "lines", texts, np.arange(len(strings)), UNOWNED, is_path=True)


def _array_values(block: AnyArray) -> Iterator[tuple[str, UInt64Array, AnyArray]]:
    """The kinds of traces that an array can hold, with the values of its rows, and the row of each."""
    rows, names = np.arange(len(block)), block.dtype.names or ()
    if "key_hi" in names:
        yield "key", block["key_hi"].astype(np.uint64), rows
    elif names == ("hi", "lo"):
        yield "text", block["hi"].astype(np.uint64), rows
    elif block.ndim == 2 and block.dtype in (np.float16, np.float32):
        yield "vector", row_values(block.astype(np.float16)), rows
    elif block.ndim == 2 and block.dtype == np.int8:
        yield "vector", row_values(block), rows
    elif block.ndim <= 2 and block.dtype.kind in "iu":
        runs = token_runs(block)
        of_run = np.repeat(rows, runs.shape[1]) if block.ndim == 2 else rows[: len(runs)]
        yield "tokens", runs.ravel(), of_run


def _ids_in(text: str) -> list[str]:
    return [piece for piece in string_pieces(text) if len(piece) >= _MIN_ID_CHARS]


def _strings_of(value: Any) -> Iterator[str]:
    """All strings in a JSON value, keys too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for each in value:
            yield from _strings_of(each)
    elif isinstance(value, dict):
        yield from value
        for each in value.values():
            yield from _strings_of(each)


def _json_strings(line: str) -> list[str]:
    """The strings of a line of JSON; none when it is something else."""
    try:
        return list(_strings_of(orjson.loads(line)))
    except orjson.JSONDecodeError:
        return []
