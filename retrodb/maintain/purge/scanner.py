"""Search the bytes of files of any kind for traces of purged documents.

What is found in a file depends on its bytes, on its name and on the traces, and on nothing else. Whether a row belongs to a live
document is decided later (`live_rows.py`), because that can change while the file stays the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import orjson
import xxhash

from retrodb.errors import DamagedFileError
from retrodb.format.arrays import AnyArray, Int64Array, UInt64Array, map_array, vectors_of
from retrodb.format.parquet import iterate_row_groups
from retrodb.format.part_files import SEARCH_CODES_FILE
from retrodb.format.text_arrays import text_buffers
from retrodb.maintain.purge.matching import RUN_TOKENS, matching_runs, matching_shingles, row_values
from retrodb.maintain.purge.traces import (
    Traces,
    first_halves,
    json_strings,
    search_code_values,
    string_pieces,
    string_values,
)

if TYPE_CHECKING:
    import pyarrow as pa

METADATA = "column metadata"
"""Location of JSON about a document. An id in it may be the name of another document."""
VECTOR = "column vector"
"""Location of the bytes of float16 vectors, which the tasks of a join leave for each other."""
_BLOCK_ROWS = 1 << 15
_MIN_ID_CHARS = 4  # a shorter id is searched only where ids are expected, not in paths, plans and metadata
_PATH_COLUMNS = ("path",)  # an id may be a part of their strings

Found: TypeAlias = Callable[[str, str, UInt64Array, Int64Array], None]
"""Is told the location in a file, the kind of trace, and the values and rows (n,) of the traces there."""


class TraceScanner:
    """Searches one file."""

    def __init__(self, traces: Traces, found: Found) -> None:
        self._traces, self._found = traces, found
        self.num_rows = 0  # of a table or an array
        self.num_compared: Counter[str] = Counter()  # kind -> values

    def scan(self, path: str, local: Path) -> None:
        """Search a file.

        Raises:
            DamagedFileError: the file cannot be read as what it is named.
        """
        ending = path.rpartition(".")[2]
        readers = {
            "parquet": self._scan_parquet,
            "arrow": self._scan_arrow,
            "npy": self._scan_npy,
            "json": self._scan_json,
        }
        try:
            if path.endswith("/" + SEARCH_CODES_FILE):
                self._scan_search_codes(path, local)
            elif ending in readers:
                readers[ending](local)
            elif ending != "faiss":  # a codebook holds no rows
                self._scan_lines(local)
        except (orjson.JSONDecodeError, UnicodeDecodeError) as error:
            raise DamagedFileError("neither JSON nor text", where=path) from error

    def _compare(self, location: str, kind: str, values: UInt64Array, rows: Int64Array) -> None:
        """Compare values (N,) of rows (N,) with the traces."""
        self.num_compared[kind] += len(values)
        is_trace = self._traces.contains(kind, values)
        if is_trace.any():
            self._found(location, kind, values[is_trace], rows[is_trace])

    def _scan_parquet(self, local: Path) -> None:
        for table in iterate_row_groups(local):
            self._scan_table(table)

    def _scan_arrow(self, local: Path) -> None:
        import pyarrow as pa

        try:
            with pa.memory_map(str(local)) as source:
                reader = pa.ipc.open_file(source)
                for number in range(reader.num_record_batches):
                    self._scan_table(pa.table(reader.get_batch(number)))
        except pa.ArrowException as error:
            raise DamagedFileError("not an Arrow file", where=str(local)) from error

    def _scan_table(self, table: pa.Table) -> None:
        import pyarrow as pa

        rows = self.num_rows + np.arange(table.num_rows)
        self.num_rows += table.num_rows
        for name in table.column_names:
            column, location = table.column(name).combine_chunks(), f"column {name}"
            if name in _PATH_COLUMNS:
                self._scan_strings(location, column.to_pylist(), rows)
            elif location == METADATA:
                self._scan_metadata(column.fill_null("").cast(pa.large_string()), rows)
            else:
                self._scan_column(location, column, rows)

    def _scan_column(self, location: str, column: pa.Array, rows: Int64Array) -> None:
        """Search the values of a column, or of lists in it; `rows` gives the row of each."""
        import pyarrow as pa
        import pyarrow.compute as pc
        import pyarrow.types as types

        if types.is_large_list(column.type) or types.is_list(column.type) or types.is_fixed_size_list(column.type):
            if types.is_integer(column.type.value_type):
                self._scan_token_lists(location, column, rows)
            else:
                list_rows = rows[pc.list_parent_indices(column).to_numpy()]
                self._scan_column(location, column.flatten(), list_rows)
        elif types.is_string(column.type) or types.is_large_string(column.type):
            strings = column.fill_null("").cast(pa.large_string())
            self._compare(location, "id", _whole_values(strings), rows)
            self._compare_words(location, strings, rows)
        elif types.is_fixed_size_binary(column.type) and location == VECTOR and column.null_count == 0:
            vectors = vectors_of(column, column.type.byte_width // 2)
            self._compare(location, "vector", row_values(vectors), rows)
        elif types.is_fixed_size_binary(column.type) and column.type.byte_width == 16 and column.null_count == 0:
            hashes = np.array(column.to_pylist(), dtype="S16")  # of one row group
            self._compare(location, "text", first_halves(hashes), rows)

    def _scan_token_lists(self, location: str, column: pa.Array, rows: Int64Array) -> None:
        import pyarrow.compute as pc

        tokens = column.flatten().to_numpy(zero_copy_only=False)
        ends = np.cumsum(pc.list_value_length(column).fill_null(0).to_numpy())
        matches = matching_runs(tokens[None, :], self._traces.sets["tokens"])
        list_of = np.searchsorted(ends, matches.positions, "right")
        is_inside = matches.positions + RUN_TOKENS <= ends[list_of]  # a run does not continue in the next list
        self.num_compared["tokens"] += matches.num_compared
        if is_inside.any():
            self._found(location, "tokens", matches.values[is_inside], rows[list_of[is_inside]])

    def _scan_metadata(self, texts: pa.LargeStringArray, rows: Int64Array) -> None:
        """Search JSON in which an id may be one of the strings."""
        strings = ((text, *_strings_of_line(text)) for text in texts.to_pylist())
        parts = [[part for part in of_row if len(part) >= _MIN_ID_CHARS] for of_row in strings]
        self._compare_ids(METADATA, parts, rows)
        self._compare_words(METADATA, texts, rows)

    def _compare_ids(self, location: str, strings: Sequence[Sequence[str]], rows: Int64Array) -> None:
        """Compare the strings of each row with the ids."""
        row_of_string = np.repeat(rows, [len(of_row) for of_row in strings])
        self._compare(location, "id", string_values(string for of_row in strings for string in of_row), row_of_string)

    def _compare_words(self, location: str, strings: pa.Array, rows: Int64Array) -> None:
        """Compare 13 words in a row, or all words of a short text, with those of the documents."""
        matches = matching_shingles(strings, self._traces.sets["shingle"])
        self.num_compared["shingle"] += matches.num_compared
        if len(matches.values):
            self._found(location, "shingle", matches.values, rows[matches.positions])

    def _scan_npy(self, local: Path) -> None:
        array = map_array(local)
        self.num_rows = len(array)
        for start in range(0, len(array), _BLOCK_ROWS):
            self._scan_block(np.asarray(array[start : start + _BLOCK_ROWS]), start)

    def _scan_block(self, block: AnyArray, start: int) -> None:
        """Search rows of an array; `start` is the first row."""
        rows, names = start + np.arange(len(block)), block.dtype.names or ()
        if "key_hi" in names:
            self._compare("array", "key", block["key_hi"].astype(np.uint64), rows)
        elif names[:2] == ("hi", "lo"):
            self._compare("array", "text", block["hi"].astype(np.uint64), rows)
        elif names == ("shingle",):
            self._compare("array", "shingle", block["shingle"].astype(np.uint64), rows)
        elif block.ndim == 2 and block.dtype in (np.float16, np.float32):
            self._compare("array", "vector", row_values(block.astype(np.float16, copy=False)), rows)
        elif block.ndim == 2 and block.dtype == np.int8:
            self._compare("array", "vector", row_values(block), rows)
        elif block.ndim in (1, 2) and block.dtype.kind in "iu":
            tokens = block if block.ndim == 2 else block[None, :]
            matches = matching_runs(tokens, self._traces.sets["tokens"])
            self.num_compared["tokens"] += matches.num_compared
            if len(matches.values):
                at = matches.positions // tokens.shape[1] if block.ndim == 2 else matches.positions
                self._found("array", "tokens", matches.values, rows[at])

    def _scan_search_codes(self, path: str, local: Path) -> None:
        """Search the codes of a part in list order; a row is a slot of the blocks, see `StoredSearchCodes.positions_of`."""
        array = map_array(local)
        for start in range(0, len(array), _BLOCK_ROWS):
            try:
                values = search_code_values(np.asarray(array[start : start + _BLOCK_ROWS]))
            except ValueError as error:
                raise DamagedFileError(f"not search codes ({error})", where=path) from error
            self._compare("search codes", "vector", values, self.num_rows + np.arange(len(values)))
            self.num_rows += len(values)

    def _scan_json(self, local: Path) -> None:
        strings = json_strings(local.read_bytes())
        self._scan_strings("JSON", strings, np.arange(len(strings)))

    def _scan_lines(self, local: Path) -> None:
        lines = local.read_bytes().decode().splitlines()
        strings = [string for line in lines for string in (line, *_strings_of_line(line))]
        self._scan_strings("lines", strings, np.arange(len(strings)))

    def _scan_strings(self, location: str, strings: Sequence[str], rows: Int64Array) -> None:
        """Search strings of which an id may be a part."""
        import pyarrow as pa

        parts = [[part for part in string_pieces(string) if len(part) >= _MIN_ID_CHARS] for string in strings]
        self._compare_ids(location, parts, rows)
        self._compare_words(location, pa.array(strings, pa.large_string()), rows)


def _whole_values(strings: pa.LargeStringArray) -> UInt64Array:
    """(N,) the value of each whole string, as `string_values` gives it."""
    data, offsets = text_buffers(strings)
    view = data.data
    hashes = (xxhash.xxh3_64_intdigest(view[start:end]) for start, end in pairwise(offsets.tolist()))
    return np.fromiter(hashes, np.uint64, len(strings))


def _strings_of_line(line: str) -> list[str]:
    """The strings in a line of JSON; none when it is something else."""
    try:
        return json_strings(line)
    except orjson.JSONDecodeError:
        return []
