"""The task of packed query sets: some sequences become one shard of the set.

In the files of the set a sequence is a document. Its metadata names the documents that are packed in it, as `source/id`, so
that none of them becomes a neighbour of the sequence, whichever version of them the database has.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import TypeAlias

import numpy as np
import orjson

from retrodb.corpus.chunking import Chunks
from retrodb.corpus.lm_tokenizer import Tokenizer
from retrodb.corpus.special_tokens import all_special_ids
from retrodb.corpus.tokenizer_files import resolve_tokenizer
from retrodb.engine.task import NoResult, Task, TaskKind, TaskRecord
from retrodb.errors import MismatchError
from retrodb.format.arrays import Int64Array
from retrodb.format.schemas import ROLE_TEXT
from retrodb.format.settings import Settings, parse_settings
from retrodb.stages.ingest.shard import DocumentBatch, write_shards
from retrodb.stages.ingest.tokenize import load_tokenizer, query_paths
from retrodb.stages.queries.known_tokens import KnownTokens
from retrodb.stages.queries.megatron import MegatronPacking, MegatronSequences
from retrodb.stages.queries.own import OwnPacking, OwnSequences
from retrodb.stages.queries.packing import PackedSequence, Sequences
from retrodb.stages.queries.query_set import document_batch
from retrodb.stages.queries.tokens import TokenPacking, TokenRows
from retrodb.store.storage import Storage

STAGE_VERSION = 1
_BATCH_SEQUENCES = 256  # that are written at once: 4 MB of int64 tokens at 2,048 tokens per sequence

AnyPacking: TypeAlias = MegatronPacking | OwnPacking | TokenPacking


@dataclass(frozen=True)
class SequenceSource:
    """Where the sequences of a packing are read from: one field for each kind of packing, of which one is set."""

    snapshot: int  # whose documents an OwnPacking packs
    order: str  # folder where megatron-core stores its order
    tokens: TokenPacking | None = None
    own: OwnPacking | None = None
    megatron: MegatronPacking | None = None

    @staticmethod
    def of(packing: AnyPacking, snapshot: int, order: str) -> SequenceSource:
        """The sequences of a packing."""
        match packing:
            case TokenPacking():
                return SequenceSource(snapshot, order, tokens=packing)
            case OwnPacking():
                return SequenceSource(snapshot, order, own=packing)
            case MegatronPacking():
                return SequenceSource(snapshot, order, megatron=packing)


@dataclass(frozen=True)
class PackedPayload:
    """A range of sequences."""

    name: str  # of the query set
    source: SequenceSource
    tokenizer: str | None  # name of the tokenizer of the sequences; None is the database's
    tokenizer_digest: str
    first: int
    num_sequences: int


KIND = TaskKind[PackedPayload, NoResult]("queries", STAGE_VERSION, NoResult)


def run_packed_task(storage: Storage, task: Task[PackedPayload, NoResult], clock: str) -> TaskRecord[NoResult]:
    """Write a range of sequences as one shard of the query set.

    Raises:
        MismatchError: for tokens that the tokenizer does not have, or that the files of the database cannot hold.
    """
    payload = task.payload
    settings = parse_settings(storage.read("retrodb.toml").decode(), where="retrodb.toml")
    shards = write_shards(
        storage,
        _batches(storage, payload, settings),
        settings,
        source=payload.name,
        clock=clock,
        path=query_paths(task.id, payload.name),
    )
    counts = {
        "rows": sum(shard.num_chunks for shard in shards),
        "tokens": sum(shard.num_tokens for shard in shards),
    }
    return TaskRecord(task.id, tuple(file for shard in shards for file in shard.files), counts=counts)


@lru_cache(maxsize=2)
def open_sequences(url: str, source: SequenceSource) -> Sequences:
    """The sequences of a packing, opened once per process."""
    if source.tokens is not None:
        return TokenRows(source.tokens)
    if source.own is not None:
        return OwnSequences.open(url, source.snapshot, source.own)
    assert source.megatron is not None, "one kind of packing is set"
    return MegatronSequences.open(source.megatron, Path(source.order))


@lru_cache(maxsize=2)
def sequence_tokenizer(url: str, name: str | None, digest: str) -> Tokenizer:
    """The tokenizer with this name, or the database's, loaded once per process."""
    return resolve_tokenizer(name) if name else load_tokenizer(url, digest)


class Detokenizer:
    """Turns tokens into text. Tokens without a text, such as the end of a document, become a line break."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._no_text = np.array(sorted(all_special_ids(tokenizer.to_bytes())), dtype=np.int64)

    def __call__(self, tokens: Int64Array) -> str:
        has_text = (tokens < self._tokenizer.vocab_size) & (tokens >= 0) & ~np.isin(tokens, self._no_text)
        first, *others = np.split(tokens, np.flatnonzero(~has_text))  # each of the others begins with such a token
        texts = [first.tolist(), *(part[1:].tolist() for part in others)]
        return "\n".join(self._tokenizer.decode(text) for text in texts)


def _batches(storage: Storage, payload: PackedPayload, settings: Settings) -> Iterator[DocumentBatch]:
    sequences = open_sequences(storage.url, payload.source)
    tokenizer = sequence_tokenizer(storage.url, payload.tokenizer, payload.tokenizer_digest)
    text_of, known = Detokenizer(tokenizer), KnownTokens(tokenizer)
    end = payload.first + payload.num_sequences
    for start in range(payload.first, end, _BATCH_SEQUENCES):
        batch = list(sequences.read(start, min(start + _BATCH_SEQUENCES, end)))
        for sequence in batch:
            known.refuse_others(sequence.tokens, where=sequence.file, place=sequence.place)
            _refuse_wide(sequence, settings)
        yield _batch(batch, start, payload.name, settings, text_of)


def _batch(
    sequences: Sequence[PackedSequence], first: int, name: str, settings: Settings, text_of: Detokenizer
) -> DocumentBatch:
    """Sequences as the documents of a shard. The text of a chunk is that of its own tokens."""
    import pyarrow as pa

    m = settings.chunk_tokens
    sizes = np.array([-(-len(sequence.tokens) // m) for sequence in sequences], dtype=np.int64)
    lengths = np.array([len(sequence.tokens) for sequence in sequences], dtype=np.int64)
    first_row = np.cumsum(sizes) - sizes
    position = np.arange(int(sizes.sum())) - np.repeat(first_row, sizes)
    tokens = np.concatenate([sequence.tokens for sequence in sequences])
    starts = np.repeat(np.cumsum(lengths) - lengths, sizes) + position * m
    offsets = np.append(starts, len(tokens))
    texts = [text_of(tokens[a:b]) for a, b in pairwise(offsets.tolist())]
    whole = ["".join(texts[row : row + size]) for row, size in zip(first_row.tolist(), sizes.tolist(), strict=True)]
    chunks = Chunks(
        tokens=tokens.astype(settings.token_dtype),
        token_offsets=offsets,
        document=np.repeat(first_row, sizes).astype(np.int32),
        position=position.astype(np.int32),
        role=np.full(len(position), ROLE_TEXT, dtype=np.uint8),
        text=pa.array(texts, pa.large_string()),
        first_row=first_row,
        num_chunks=sizes.astype(np.int32),
        num_key_chunks=np.zeros(len(sizes), dtype=np.int32),
        num_tokens=lengths,
        num_key_tokens=np.zeros(len(sizes), dtype=np.int64),
        num_chars=np.array([len(text) for text in whole], dtype=np.int64),
    )
    doc_ids = [str(number) for number in range(first, first + len(sequences))]
    metadata = [orjson.dumps({"documents": list(sequence.documents)}).decode() for sequence in sequences]
    return document_batch(name, doc_ids, pa.array(whole, pa.large_string()), metadata, chunks)


def _refuse_wide(sequence: PackedSequence, settings: Settings) -> None:
    """Raises MismatchError when the files of the database cannot hold the tokens."""
    largest = int(sequence.tokens.max(initial=0))
    if largest > np.iinfo(settings.token_dtype).max:
        raise MismatchError(
            f"{sequence.place}: the id {largest} does not fit the database's tokens ({settings.token_dtype})",
            where=sequence.file,
            remedy="Use a database with the tokenizer of the training set.",
        )
