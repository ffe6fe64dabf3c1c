"""Search files of any kind for traces of purged documents.

Legend: N values that are compared at once.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import orjson

from retrodb.dedup.shingles import shingle_sets
from retrodb.errors import DamagedFileError, MissingFileError
from retrodb.format.arrays import AnyArray, Int64Array, UInt64Array, map_array
from retrodb.format.parquet import iterate_row_groups
from retrodb.format.part_files import INDEX_FILE
from retrodb.maintain.purge.live_rows import UNOWNED, LiveRows, RowOwnership
from retrodb.maintain.purge.traces import (
    Traces,
    first_halves,
    index_values,
    json_strings,
    row_values,
    string_pieces,
    string_values,
    token_runs,
)
from retrodb.view.view import View

if TYPE_CHECKING:
    import pyarrow as pa

_BLOCK_ROWS = 1 << 15
_MIN_ID_CHARS = 4  # a shorter id is searched only where ids are expected, not in paths, plans and metadata
_PATH_COLUMNS = ("path",)  # an id may be a part of their strings
_JSON_COLUMNS = ("metadata",)  # an id may be one of the strings in their JSON


@dataclass(frozen=True)
class RemainingTrace:
    """A trace of a purged document in a file."""

    path: str
    location: str  # in the file, such as "column text, row 3"
    kind: str  # of trace; or why the file could not be searched
    num_values: int


@dataclass(frozen=True)
class _Match:
    """Values of one kind that match traces, in rows of no live document."""

    path: str
    location: str
    kind: str
    values: UInt64Array  # (N,)
    rows: Int64Array  # (N,)


class TraceScanner:
    """Searches files one after another and remembers what it found."""

    def __init__(self, view: View, traces: Traces, id_strings: frozenset[str]) -> None:
        self._view, self._traces, self._id_strings = view, traces, id_strings
        self._live = LiveRows(view)
        self._matches: list[_Match] = []
        self._live_values: dict[str, list[UInt64Array]] = defaultdict(list)  # kind -> matches in live documents
        self._unreadable: list[RemainingTrace] = []
        self.shared_shingles: Counter[int] = Counter()  # first chunk of a live document -> shingles in common
        self.num_compared: Counter[str] = Counter()  # kind -> values

    def scan_file(self, path: str) -> None:
        """Search one file."""
        readers = {"parquet": self._scan_parquet, "arrow": self._scan_arrow, "npy": self._scan_npy}
        readers["json"] = self._scan_json
        ending = path.rpartition(".")[2]
        try:
            local = self._view.storage.local(path)
            if path.startswith("tmp/"):
                self._unreadable.append(RemainingTrace(path, "-", "unfinished file", 1))
            elif ending in readers:
                readers[ending](path, local)
            elif path.endswith("/" + INDEX_FILE):
                self._scan_index(path, local)
            elif ending != "faiss":  # a codebook holds no rows
                self._scan_lines(path, local)
        except MissingFileError:  # another command deleted it
            return
        except (DamagedFileError, orjson.JSONDecodeError, UnicodeDecodeError):
            self._unreadable.append(RemainingTrace(path, "-", "cannot be read", 1))

    def remaining(self) -> Iterator[RemainingTrace]:
        """The traces that were found and are not in live documents, and the files that could not be searched."""
        for match in self._matches:
            live_values = np.concatenate([np.empty(0, np.uint64), *self._live_values[match.kind]])
            is_remaining = ~np.isin(match.values, live_values)
            if is_remaining.any():
                location = f"{match.location}, row {int(match.rows[is_remaining][0])}"
                yield RemainingTrace(match.path, location, match.kind, int(is_remaining.sum()))
        yield from self._unreadable

    def _compare(
        self, path: str, location: str, kind: str, values: UInt64Array, rows: Int64Array, owners: RowOwnership
    ) -> None:
        """Compare values (N,) of rows (N,) with the traces."""
        self.num_compared[kind] += len(values)
        is_trace = self._traces.contains(kind, values)
        if not is_trace.any():
            return
        values, rows = values[is_trace], rows[is_trace]
        is_live = owners.live(rows)
        self._live_values[kind].append(values[is_live])
        if kind == "shingle" and owners.documents is not None:
            pairs = np.unique(np.stack([owners.documents[rows[is_live]], values[is_live].view(np.int64)]), axis=1)
            self.shared_shingles.update(pairs[0].tolist())
        if not is_live.all():
            self._matches.append(_Match(path, location, kind, values[~is_live], rows[~is_live]))

    def _scan_parquet(self, path: str, local: Path) -> None:
        owners, start = self._live.of(path), 0
        for table in iterate_row_groups(local):
            self._scan_table(path, table, owners, start)
            start += table.num_rows

    def _scan_arrow(self, path: str, local: Path) -> None:
        import pyarrow as pa

        try:
            with pa.memory_map(str(local)) as source:
                reader, start = pa.ipc.open_file(source), 0
                for number in range(reader.num_record_batches):
                    table = pa.table(reader.get_batch(number))
                    self._scan_table(path, table, UNOWNED, start)
                    start += table.num_rows
        except pa.ArrowException as error:
            raise DamagedFileError("not an Arrow file", where=path) from error

    def _scan_table(self, path: str, table: pa.Table, owners: RowOwnership, start: int) -> None:
        for name in table.column_names:
            column, location = table.column(name).combine_chunks(), f"column {name}"
            rows = start + np.arange(len(column))
            if name in _PATH_COLUMNS:
                self._scan_strings(path, location, column.to_pylist(), rows, owners)
                continue
            self._scan_column(path, location, column, rows, owners)
            if name in _JSON_COLUMNS:
                is_of_none = ~owners.live(rows)  # what a live document says about another one belongs to it
                self._scan_metadata(path, location, column.filter(is_of_none).to_pylist(), rows[is_of_none])

    def _scan_column(self, path: str, location: str, column: pa.Array, rows: Int64Array, owners: RowOwnership) -> None:
        """Search the values of a column, or of lists in it; `rows` gives the row of each."""
        import pyarrow as pa
        import pyarrow.compute as pc
        import pyarrow.types as types

        if types.is_large_list(column.type) or types.is_list(column.type) or types.is_fixed_size_list(column.type):
            if types.is_integer(column.type.value_type):
                self._scan_token_lists(path, location, column, rows, owners)
            else:
                list_rows = rows[pc.list_parent_indices(column).to_numpy()]
                self._scan_column(path, location, column.flatten(), list_rows, owners)
        elif types.is_string(column.type) or types.is_large_string(column.type):
            strings = column.fill_null("").cast(pa.large_string())
            self._compare_whole(path, location, strings, rows, owners)
            self._compare_words(path, location, strings, rows, owners)
        elif types.is_fixed_size_binary(column.type) and column.type.byte_width == 16 and column.null_count == 0:
            hashes = np.array(column.to_pylist(), dtype="S16")
            self._compare(path, location, "text", first_halves(hashes), rows, owners)

    def _scan_token_lists(
        self, path: str, location: str, column: pa.Array, rows: Int64Array, owners: RowOwnership
    ) -> None:
        import pyarrow.compute as pc

        tokens = column.flatten().to_numpy(zero_copy_only=False)
        list_of = pc.list_parent_indices(column).to_numpy()
        runs = token_runs(tokens)
        starts, ends = list_of[: len(runs)], list_of[len(list_of) - len(runs) :]
        is_inside = starts == ends  # a run does not continue in the next list
        self._compare(path, location, "tokens", runs[is_inside], rows[starts[is_inside]], owners)

    def _scan_metadata(self, path: str, location: str, texts: Sequence[str], rows: Int64Array) -> None:
        """Compare the strings in JSON with the ids, in rows of no live document."""
        strings = [[s for s in _strings_of_line(text) if len(s) >= _MIN_ID_CHARS] for text in texts]
        self._compare_ids(path, location, strings, rows, UNOWNED)

    def _compare_whole(
        self, path: str, location: str, strings: pa.Array, rows: Int64Array, owners: RowOwnership
    ) -> None:
        """Compare whole strings with the ids."""
        import pyarrow as pa
        import pyarrow.compute as pc

        if self._id_strings:
            ids = pa.array(sorted(self._id_strings), strings.type)
            equal = np.flatnonzero(pc.is_in(strings, value_set=ids))
            self.num_compared["id"] += len(strings) - len(equal)
            equal_strings = [[string] for string in strings.take(pa.array(equal)).to_pylist()]
            self._compare_ids(path, location, equal_strings, rows[equal], owners)

    def _compare_ids(
        self, path: str, location: str, strings: Sequence[Sequence[str]], rows: Int64Array, owners: RowOwnership
    ) -> None:
        """Compare the strings of each row with the ids."""
        row_of_string = np.repeat(rows, [len(of_row) for of_row in strings])
        values = string_values(string for of_row in strings for string in of_row)
        self._compare(path, location, "id", values, row_of_string, owners)

    def _compare_words(
        self, path: str, location: str, strings: pa.Array, rows: Int64Array, owners: RowOwnership
    ) -> None:
        """Compare 13 words in a row, or all words of a short text, with those of the documents."""
        sets = shingle_sets(strings)
        string_of = np.repeat(np.arange(len(strings)), sets.sizes())
        self._compare(path, location, "shingle", sets.keys, rows[string_of], owners)
        short = np.flatnonzero(sets.whole_keys)
        self._compare(path, location, "shingle", sets.whole_keys[short], rows[short], owners)

    def _scan_npy(self, path: str, local: Path) -> None:
        array, owners = map_array(local), self._live.of(path)
        for start in range(0, len(array), _BLOCK_ROWS):
            block = np.asarray(array[start : start + _BLOCK_ROWS])
            for kind, values, rows in _array_values(block):
                self._compare(path, "array", kind, values, start + rows, owners)

    def _scan_index(self, path: str, local: Path) -> None:
        values, owners = index_values(local), self._live.of(path)
        if owners.is_live is not None and len(owners.is_live) != len(values):
            owners = UNOWNED  # the rows are not those that the snapshot promises
        self._compare(path, "index", "vector", values, np.arange(len(values)), owners)

    def _scan_json(self, path: str, local: Path) -> None:
        strings = json_strings(local.read_bytes())
        self._scan_strings(path, "JSON", strings, np.arange(len(strings)), UNOWNED)

    def _scan_lines(self, path: str, local: Path) -> None:
        lines = local.read_bytes().decode().splitlines()
        strings = [string for line in lines for string in (line, *_strings_of_line(line))]
        self._scan_strings(path, "lines", strings, np.arange(len(strings)), UNOWNED)

    def _scan_strings(
        self, path: str, location: str, strings: Sequence[str], rows: Int64Array, owners: RowOwnership
    ) -> None:
        """Search strings of which an id may be a part."""
        import pyarrow as pa

        parts = [[part for part in string_pieces(string) if len(part) >= _MIN_ID_CHARS] for string in strings]
        self._compare_ids(path, location, parts, rows, owners)
        self._compare_words(path, location, pa.array(strings, pa.large_string()), rows, owners)


def _array_values(block: AnyArray) -> Iterator[tuple[str, UInt64Array, Int64Array]]:
    """The kinds of traces that an array can contain, each with the values of its rows, and the row of each value."""
    rows, names = np.arange(len(block)), block.dtype.names or ()
    if "key_hi" in names:
        yield "key", block["key_hi"].astype(np.uint64), rows
    elif names[:2] == ("hi", "lo"):
        yield "text", block["hi"].astype(np.uint64), rows
    elif names == ("shingle",):
        yield "shingle", block["shingle"].astype(np.uint64), rows
    elif block.ndim == 2 and block.dtype in (np.float16, np.float32):
        yield "vector", row_values(block.astype(np.float16)), rows
    elif block.ndim == 2 and block.dtype == np.int8:
        yield "vector", row_values(block), rows
    elif block.ndim <= 2 and block.dtype.kind in "iu":
        runs = token_runs(block)
        row_of_run = np.repeat(rows, runs.shape[1]) if block.ndim == 2 else rows[: len(runs)]
        yield "tokens", runs.ravel(), row_of_run


def _strings_of_line(line: str) -> list[str]:
    """The strings in a line of JSON; none when it is something else."""
    try:
        return json_strings(line)
    except orjson.JSONDecodeError:
        return []
