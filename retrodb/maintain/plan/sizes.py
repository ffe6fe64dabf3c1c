"""How much a database of so many tokens has, and how many bytes of each kind of file."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cache

from retrodb.ann.codebook import FLAT, choose_factory, num_lists_of
from retrodb.ann.merge_policy import choose_merges
from retrodb.ann.search_codes import CodeForm, code_form
from retrodb.ann.supported_factory import check_factory
from retrodb.ann.training import new_codebook, note_of_small_sample
from retrodb.config import InitParams, NearDuplicatesParams
from retrodb.dedup.lsh import parse_bands
from retrodb.errors import UsageError
from retrodb.format import MAX_SHARD_CHUNKS
from retrodb.maintain.plan.figures import CorpusAverages
from retrodb.maintain.plan.request import PlanRequest, shape_of
from retrodb.stages.ingest.read_tasks import segment_chars


@dataclass(frozen=True)
class DatabaseSize:
    """What a database has, and how it is cut."""

    tokens: int
    documents: int
    chunks: int
    vectors: int  # of live chunks that are long enough
    text_bytes: int
    shards: int
    chunk_tokens: int
    dimension: int
    width: int  # neighbours of a row, with spare ones
    k: int
    factory: str
    factory_note: str  # why it is not the one of the request; empty where it is
    num_lists: int
    part_rows: tuple[int, ...]  # of index parts, merged
    merged_rows: int  # rows that merges write, each as often as it is written

    @staticmethod
    def of(request: PlanRequest, averages: CorpusAverages) -> DatabaseSize:
        """The size of the database of a request.

        Raises:
            ConfigError: the factory is not supported.
            UsageError: there are too many shards to plan, which looks at each.
        """
        tokens, m = request.tokens, request.chunk_tokens
        documents = max(1, round(tokens / averages.tokens_per_document))
        chunks = max(documents, round(tokens / m + documents / 2))  # the last chunk of a document is half full
        long_enough = max(0.0, chunks - documents * min(1.0, (InitParams.min_key_tokens - 1) / m))
        vectors = max(1, round(long_enough * (1 - averages.duplicate_fraction)))
        text_bytes = round(tokens * averages.text_bytes_per_token)
        shards = max(-(-text_bytes // segment_chars(text_bytes)), -(-chunks // MAX_SHARD_CHUNKS))
        if shards > _MOST_SHARDS:
            what = f"{shards:,} shards, of {request.tokens:,} tokens in chunks of {m}"
            raise UsageError(what, remedy=f"Plan fewer tokens or longer chunks: at most {_MOST_SHARDS:,} shards.")
        dimension = shape_of(request).dimension
        factory = request.factory
        if factory == "auto":
            factory = choose_factory(vectors, dimension, request.search_memory_bytes)
        check_factory(factory, dimension, "inner_product")
        if factory_note := note_of_small_sample(vectors, factory):  # as `index` does
            factory = FLAT
        part_rows, merged_rows = merged_parts([vectors // shards] * shards)
        return DatabaseSize(
            tokens=tokens,
            documents=documents,
            chunks=chunks,
            vectors=vectors,
            text_bytes=text_bytes,
            shards=shards,
            chunk_tokens=m,
            dimension=dimension,
            width=request.k + request.spare_neighbours,
            k=request.k,
            factory=factory,
            factory_note=factory_note,
            num_lists=num_lists_of(factory),
            part_rows=part_rows,
            merged_rows=merged_rows,
        )

    @property
    def shard_chunks(self) -> int:
        """Chunks of a shard, on average."""
        return -(-self.chunks // self.shards)

    @property
    def part_row_bytes(self) -> int:
        """A row of an index part: codes with their scale and length, its id, its list, and its search code."""
        return self.dimension + 8 + 8 + 4 + form_of(self.factory, self.dimension).code_bytes

    @property
    def part_list_bytes(self) -> int:
        """A list in a part: its number, its offset, and on average half a block of search codes that is filled up."""
        form = form_of(self.factory, self.dimension)
        return 4 + 8 + (form.block_rows // 2 * form.code_bytes if form.is_packed else 0)

    @property
    def filled_lists(self) -> int:
        """Lists that are not empty, summed over parts."""
        return sum(min(self.num_lists, rows) for rows in self.part_rows)

    @property
    def neighbour_bytes(self) -> float:
        """A neighbour in the file of a table.

        Ids compress worse in a larger database. Measured at 17,000, 50,000 and 161,000 rows of text (2026-11-28-plan.md): 8.5,
        9.2 and 10.1 bytes. An id and a distance take 12, and a row its number and its last distance again, which bounds it.
        """
        return min(8.5 + 0.48 * self._bits_beyond, 12 + 8 / self.width)

    @property
    def naming_bytes(self) -> float:
        """A neighbour in the file that says which rows name a chunk: 2.0 and 2.2 bytes at 17,000 and 161,000 rows."""
        return 2.0 + 0.06 * self._bits_beyond

    @property
    def _bits_beyond(self) -> float:
        """Bits of an id beyond those of the smallest database that was measured."""
        return max(0.0, math.log2(max(2, self.vectors)) - 14)

    def stored_bytes(self, averages: CorpusAverages) -> dict[str, int]:
        """Bytes by kind of file, without test sets and the records of files."""
        tokens = averages.token_bytes * self.chunk_tokens * self.chunks
        vectors, parts = 2 * self.dimension * self.vectors, self.part_row_bytes * self.vectors
        hashes, ids = 16 * self.chunks, 40 * self.documents
        stored = {
            "chunks": averages.chunks_bytes_per_token * self.tokens,
            "documents": averages.documents_bytes * self.documents,
            "tokens": tokens,
            "hashes": hashes,
            "ids": ids,
            "bands": 16 * _NUM_BANDS * self.documents,
            "duplicates": averages.pair_bytes * self.documents,
            "vectors": vectors,
            "parts": parts + self.part_list_bytes * self.filled_lists,
            "codebooks": 4 * self.dimension * self.num_lists if self.num_lists > 1 else 0,
            "neighbours": self.neighbour_bytes * self.width * self.vectors,
            "naming": self.naming_bytes * self.width * self.vectors,
        }
        return {kind: round(size) for kind, size in stored.items() if size}

    def block_bytes(self, kinds: Collection[str], averages: CorpusAverages) -> int:
        """Bytes of the digests of blocks, for those of these kinds that are mapped arrays."""
        stored = self.stored_bytes(averages)
        mapped = sum(stored[kind] for kind in kinds if kind in ("tokens", "hashes", "ids", "vectors"))
        if "parts" in kinds:
            mapped += self.part_row_bytes * self.vectors
        return 8 * mapped // _BLOCK_BYTES

    def export_bytes(self, averages: CorpusAverages) -> int:
        """Bytes of an export as `arrays`: of a chunk its tokens, length and continuation; of a row also its bytes, document and
        neighbours."""
        tokens = averages.token_bytes * self.chunk_tokens
        return self.chunks * (tokens + 2 + 8) + self.vectors * (tokens + 2 + 4 + 8 + 8 * self.k)


_MOST_SHARDS = 4_000_000
_NUM_BANDS = parse_bands(NearDuplicatesParams.bands, NearDuplicatesParams.permutations).count
_BLOCK_BYTES = 1 << 16  # of a mapped array, with a digest of 8 bytes each


@cache
def form_of(factory: str, dimension: int) -> CodeForm:
    """How FAISS stores what it scans of a vector, found with an index of two lists."""
    few = re.sub(r"IVF\d+(\(IVF\d+,\w+\)|_HNSW\d+)?", "IVF2", factory)
    return code_form(new_codebook(few, dimension, "inner_product"))


def merged_parts(sizes: Sequence[int]) -> tuple[tuple[int, ...], int]:
    """Rows of each part after merges, and rows that these merges write. Parts of one size merge to parts of one size.

    `choose_merges` gives the runs of one round, which `index` carries out in one commit.
    """
    groups = choose_merges(sizes)
    merged = {position for group in groups for position in group}
    rest = tuple(size for position, size in enumerate(sizes) if position not in merged)
    totals = tuple(sum(sizes[position] for position in group) for group in groups)
    return (*totals, *rest), sum(totals)
