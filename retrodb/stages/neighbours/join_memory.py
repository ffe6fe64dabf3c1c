"""How much memory a join needs, known from the records of files before it starts.

Nothing here changes a byte of a table: the neighbours of a row do not depend on the rows that it is joined with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from retrodb.ann.exact import BLOCK_ROWS
from retrodb.ann.join import RERANK_MARGIN
from retrodb.ann.rerank import PAIRS
from retrodb.ann.routing import ROUTED_BYTES
from retrodb.config import NeighboursParams
from retrodb.format.entries import IndexEntry, SpaceEntry
from retrodb.format.records import ChunkRange
from retrodb.memory import MIB, cache_bytes_of, require_memory, with_caches
from retrodb.stages.index.live_parts import key_kinds, parts_of
from retrodb.view.view import View

LEAST_BLOCK_ROWS = 4096
"""Rows that are joined together at least: each block reads the lists of its rows once, so small blocks read them often."""

EXCHANGED_ROWS = 1 << 14
"""Rows that a task of a join that is split routes or joins at once."""
SORTED_ROWS = 1 << 18
"""Rows of a table that such a task sorts and writes at once."""
_RANGE_ROWS = 1 << 24  # of a range of lists: 16,777,216 * 384 dimensions * 1 byte = 6 GB of codes, mapped
_MOST_RANGES = 256  # query rows are sent to each range that they probe, so few ranges are better than many

_PROCESS_MIB = 270  # the library, numba, its compiled kernels, FAISS, and PyTorch, which looks for a GPU
_GPU_MIB = 600  # the context of a GPU in addition, where one computes the products; not measured


@dataclass(frozen=True)
class JoinSize:
    """What decides the memory of a join."""

    dim: int
    num_lists: int
    nprobe: int  # 0 compares with every vector
    width: int  # neighbours of a row, spare ones included
    num_kinds: int  # of exclusion keys
    database_rows: int
    largest_part: int  # rows
    task_rows: int  # query rows of the largest task
    threads: int
    on_cpu: bool = True
    routed_bytes: int = 0  # that the choice of the lists of routed rows takes
    keeps_vectors: bool = True  # else a process has the position of each row among the codes, int64

    @staticmethod
    def of(
        view: View,
        space: str,
        params: NeighboursParams,
        spans: Sequence[ChunkRange],
        nprobe: int,
        threads: int,
        device: str,
    ) -> JoinSize:
        """The size of the join of some ranges of rows, from the records of the parts."""
        rows = [part.num_rows for part in parts_of(view, space)]
        return JoinSize(
            dim=view.snapshot.existing(SpaceEntry, space).dimension,
            num_lists=view.snapshot.existing(IndexEntry, space).lists,
            nprobe=nprobe,
            width=params.k + params.spare_neighbours,
            num_kinds=len(key_kinds(params.exclude)),
            database_rows=sum(rows),
            largest_part=max(rows, default=0),
            task_rows=max((span.num_chunks for span in spans), default=0),
            threads=threads,
            on_cpu=device in ("cpu", "auto"),
            routed_bytes=ROUTED_BYTES if params.route_ranges else 0,
            keeps_vectors=view.keeps_vectors(space),
        )

    def with_nprobe(self, nprobe: int) -> JoinSize:
        """The size when each row probes so many lists."""
        return replace(self, nprobe=nprobe)

    def num_ranges(self, memory_bytes: int) -> int:
        """In how many ranges of lists the join is split: one, unless so many rows or the memory limit need more."""
        least = max(1, -(-self.database_rows // _RANGE_ROWS))
        if self.nprobe == 0 or (least == 1 and self.least_bytes <= memory_bytes):
            return 1
        for num_ranges in range(max(2, least), _MOST_RANGES):
            if with_caches(_PROCESS_MIB * MIB + self.range_bytes(num_ranges)) <= memory_bytes:
                return num_ranges
        return _MOST_RANGES

    def range_bytes(self, num_ranges: int) -> int:
        """What a task of a join that is split holds in addition to its process: the codebook, a range, and a block of rows.

        A range may have twice as many rows as the average. Rows that are sorted are there with their neighbours three times. When
        they are written, each neighbour is there once more, in 12 bytes.
        """
        rows = min(self.database_rows, -(-2 * self.database_rows // num_ranges))
        database = replace(self, database_rows=rows, largest_part=min(self.largest_part, rows)).database_bytes
        codebook = 3 * 4 * self.num_lists * self.dim
        positions = 0 if self.keeps_vectors else 8 * (self.database_rows - rows)
        written = 3 * min(self.task_rows, SORTED_ROWS) * (8 + 12 * self.width)
        block = max(EXCHANGED_ROWS * self.query_bytes, written, 12 * self.width * self.task_rows)
        return database + positions + 8 * self.largest_part + codebook + block + self.routed_bytes

    @property
    def database_bytes(self) -> int:
        """The database side: of each of its rows an id, a byte of the mask, the step to an equal row (int32), and exclusion keys.

        While a part is opened, about ten int64 arrays of its rows exist.
        """
        positions = 0 if self.keeps_vectors else 8 * self.database_rows
        return self.database_rows * (8 + 1 + 4 + 8 * self.num_kinds) + 80 * self.largest_part + positions

    @property
    def task_bytes(self) -> int:
        """What a task holds of all its rows.

        An id; the lists (int32), twice while stored ones are read; an interval and exclusion keys with their offsets; ids and
        distances of the neighbours, twice while they are written, as rows and then as pairs; and about six int64 arrays while
        rows and keys are looked up.
        """
        excluded = 24 + 16 * self.num_kinds
        return self.task_rows * (8 + 2 * 4 * self.nprobe + excluded + 2 * 12 * self.width + 6 * 8)

    @property
    def fixed_bytes(self) -> int:
        """All memory but that of a block of rows: the process, the codebook, and buffers of the threads, too."""
        process = (_PROCESS_MIB + (0 if self.on_cpu else _GPU_MIB)) * MIB
        codebook = 3 * 4 * self.num_lists * self.dim  # as read, as centroids, and as the quantizer has them
        buffers = 4 * self.dim * (2 * BLOCK_ROWS + self.threads * PAIRS)  # float32
        return process + codebook + buffers + self.database_bytes + self.task_bytes + self.routed_bytes

    @property
    def query_bytes(self) -> int:
        """Memory that a query row of a block needs in `join_block`.

        Its vector: float16 as read, float32 three times (ordered by home list, for further lists, in the rerank), and a byte per
        dimension of codes. Its lists: int32 three times (as given, ordered by home list, grouped by list), and again for
        further lists. Its candidates: an id (int64) and a distance (float32), four times (scan, rerank, result by home list,
        result). Its interval and exclusion keys with their offsets, twice.
        """
        vector_bytes = (2 + 3 * 4 + 1) * self.dim
        list_bytes = 2 * (3 * 4) * self.nprobe
        candidate_bytes = 4 * (8 + 4) * (self.width + RERANK_MARGIN)
        return vector_bytes + list_bytes + candidate_bytes + 2 * (24 + 16 * self.num_kinds)

    @property
    def least_bytes(self) -> int:
        """The least memory limit that the join keeps with blocks of a reasonable size."""
        return with_caches(self.fixed_bytes + min(LEAST_BLOCK_ROWS, self.task_rows) * self.query_bytes)

    def check(self, memory_bytes: int, num_ranges: int | None = None) -> None:
        """Raises NotEnoughMemory when the join does not fit; says how much is needed.

        Args:
            num_ranges: that it is split in; None splits it as far as necessary.
        """
        split_bytes = with_caches(_PROCESS_MIB * MIB + self.range_bytes(num_ranges or _MOST_RANGES))
        if self.nprobe == 0 or num_ranges == 1:
            needed = self.least_bytes
        else:
            needed = split_bytes if num_ranges else min(self.least_bytes, split_bytes)
        require_memory(self._description, needed, memory_bytes)

    @property
    def _description(self) -> str:
        database = f"a join with {self.database_rows:,} vectors of {self.dim:,} dimensions"
        return database + (f", where each row probes {self.nprobe:,} lists," if self.nprobe else "")

    def block_rows(self, memory_bytes: int) -> int:
        """How many rows are joined with all lists at once. Raises NotEnoughMemory when few do not fit."""
        require_memory(self._description, self.least_bytes, memory_bytes)
        free_bytes = memory_bytes - cache_bytes_of(memory_bytes) - self.fixed_bytes
        return max(1, min(LEAST_BLOCK_ROWS, self.task_rows), free_bytes // self.query_bytes)
