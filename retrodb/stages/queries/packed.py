"""Query sets of packed sequences: what a trainer reads, rather than documents.

A trainer concatenates documents and cuts the stream into sequences of equal length. A row of such a set is a chunk of a
sequence: row `i * l + j` is the j-th of the l chunks of sequence i. Rows may begin in the middle of a word and cross documents;
their text is what their tokens stand for, with a line break where a document ends.

In the set's files a sequence is a document. Its metadata names the documents that are packed in it, as `source/id`, so that
none of them becomes a neighbour of the sequence, in whichever version the database holds it by then.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from retrodb.corpus.chunking import Chunks
from retrodb.corpus.lm_tokenizer import Tokenizer
from retrodb.corpus.special_tokens import all_special_ids
from retrodb.corpus.tokenizer_files import resolve_tokenizer
from retrodb.engine.run import add_counts, open_run
from retrodb.engine.task import Task, TaskRecord, make_task
from retrodb.errors import MismatchError, UsageError
from retrodb.format.arrays import Int64Array
from retrodb.format.entries import QueriesEntry
from retrodb.format.ids import content_hash, id_entries, key_of, record_hash
from retrodb.format.json_values import to_plain
from retrodb.format.kinds import path_of
from retrodb.format.schemas import ROLE_TEXT
from retrodb.format.settings import Settings, parse_settings
from retrodb.stages.context import Context
from retrodb.stages.ingest.read_inputs import spool_schema
from retrodb.stages.ingest.shard import Batch, write_shards
from retrodb.stages.ingest.tokenize import load_tokenizer, query_paths
from retrodb.stages.queries.command import QueriesResult, check_name, commit_queries
from retrodb.stages.queries.megatron import SUBSETS, MegatronPacking, MegatronSequences, parse_blend
from retrodb.stages.queries.own import OwnPacking, OwnSequences
from retrodb.stages.queries.packing import PackedSequence, Sequences
from retrodb.stages.queries.tokens import TokenPacking, TokenRows
from retrodb.store.digest import identity
from retrodb.store.storage import Storage
from retrodb.view.view import View

STAGE_VERSION = 1
_TASK_CHUNKS = 1 << 17
_BATCH_SEQUENCES = 256


def packing_of(
    *,
    tokens: str | None = None,
    megatron: str | None = None,
    blend: str | None = None,
    sequences: int | None = None,
    seq_length: int | None = None,
    train_samples: int | None = None,
    **order: Any,
) -> MegatronPacking | OwnPacking | TokenPacking:
    """The packing that options mean: rows of `tokens`, `sequences` of the database's own documents, or Megatron's.

    Raises:
        UsageError: for a combination that cannot be meant.
    """
    given = {key: value for key, value in order.items() if value not in (None, (), [])}
    if tokens is not None:
        doc_ids = [str(file) for file in given.pop("doc_ids", ())]
        if sequences or megatron or blend or seq_length or train_samples or given or len(doc_ids) > 1:
            raise UsageError("--tokens takes one --doc-ids and nothing else")
        return TokenPacking.of(str(tokens), doc_ids[0] if doc_ids else None)
    if sequences is not None:
        if megatron or blend or seq_length or train_samples or given:
            raise UsageError("--sequences packs the database's own documents and takes none of Megatron's options")
        return OwnPacking(sequences)
    if (megatron is None) == (blend is None):
        raise UsageError("one of --tokens, --megatron, --blend and --sequences says what to read")
    if not seq_length or not train_samples:
        raise UsageError(
            "Megatron's order of samples needs --seq-length and --train-samples, as the training run has them"
        )
    prefixes, weights = parse_blend(blend) if blend else ((str(megatron),), None)
    subset = given.get("subset", "train")
    if subset not in SUBSETS:
        raise UsageError(f"unknown subset '{subset}'", remedy=f"Known are: {', '.join(SUBSETS)}.")
    given["doc_ids"] = tuple(map(str, given.get("doc_ids", ())))
    return MegatronPacking(prefixes, weights, seq_length, train_samples, **given)


def run_add_packed(
    context: Context,
    name: str,
    packing: MegatronPacking | OwnPacking | TokenPacking,
    *,
    tokenizer: str | None = None,
    dry_run: bool = False,
) -> QueriesResult:
    """Register the sequences of a packing as a query set; an older set of the same name is replaced.

    Args:
        tokenizer: whose tokens the sequences hold; None is the database's.

    Raises:
        UsageError, InputError: for a name, files or lengths that cannot be meant.
        MissingDependency: megatron-core is not installed, and its order is asked for.
        MismatchError: tokens that the database's token width cannot hold.
    """
    check_name(name)
    view = context.view()
    m = view.settings.chunk_tokens
    if packing.seq_length < m or packing.seq_length % m:
        raise UsageError(
            f"sequences of {packing.seq_length} tokens are no whole chunks", remedy=f"Give a multiple of {m}."
        )
    digest = _tokenizer(context.storage.url, tokenizer, view.settings.tokenizer_sha256).digest
    described = packing.to_json()
    entry = replace(
        QueriesEntry(packing.kind, seq_length=packing.seq_length, tokenizer=digest),
        **{packing.kind: described},  # type: ignore[arg-type]
    )
    state = packing.state(view)
    plan = {"version": STAGE_VERSION, "name": name, "state": state, "entry": entry}
    payload = {
        "name": name,
        "packing": described,
        "kind": packing.kind,
        "snapshot": view.snapshot.number,
        "tokenizer": tokenizer,
        "digest": digest,
    }
    if dry_run:
        with tempfile.TemporaryDirectory() as order:
            num_sequences = len(open_sequences(context.storage.url, orjson.dumps({**payload, "order": order})))
        return _result(view, name, num_sequences, packing.seq_length, dry_run=True)
    run = open_run(context.storage, "queries", plan, context.clock)
    payload["order"] = str(Path(context.storage.url) / path_of("runs", run=run.id, file="order"))
    num_sequences = len(open_sequences(context.storage.url, orjson.dumps(payload)))
    result = _result(view, name, num_sequences, packing.seq_length)
    entry = replace(entry, content=identity(to_plain(plan)))
    if view.snapshot.entry(QueriesEntry, name) == entry:
        return result
    step = max(1, _TASK_CHUNKS * m // packing.seq_length)
    tasks = [
        make_task(
            "queries", STAGE_VERSION, {**payload, "first": first, "count": min(step, num_sequences - first)}, [state]
        )
        for first in range(0, num_sequences, step)
    ]
    records = context.engine.run(run, tasks, run_packed_task, context.progress, unit="tasks")
    files = [(file, record.counts["rows"]) for record in records for file in record.files]
    totals = add_counts(records)
    return commit_queries(
        context, view, run, entry, replace(result, rows=totals["rows"], tokens=totals["tokens"]), files
    )


def _result(view: View, name: str, num_sequences: int, seq_length: int, *, dry_run: bool = False) -> QueriesResult:
    """What there will be, if no sequence is short."""
    rows = num_sequences * seq_length // view.settings.chunk_tokens
    return QueriesResult(view.snapshot.number, name, num_sequences, rows, num_sequences * seq_length, dry_run)


def run_packed_task(storage: Storage, task: Task[Any, Any], clock: str) -> TaskRecord[Any]:
    """Write some sequences as one shard of the query set."""
    payload = {key: value for key, value in task.payload.items() if key not in ("first", "count")}
    first, count = task.payload["first"], task.payload["count"]
    settings = parse_settings(storage.read("retrodb.toml").decode(), where="retrodb.toml")
    sequences = open_sequences(storage.url, orjson.dumps(payload))
    text_of = Detokenizer(_tokenizer(storage.url, payload["tokenizer"], payload["digest"]))
    shards = write_shards(
        storage,
        _batches(sequences, first, count, payload["name"], settings, text_of),
        settings,
        source=payload["name"],
        clock=clock,
        path=query_paths(task.id, payload["name"]),
    )
    counts = {"rows": sum(s.num_chunks for s in shards), "tokens": sum(s.num_tokens for s in shards)}
    return TaskRecord(task.id, tuple(file for shard in shards for file in shard.files), {}, counts)


@lru_cache(maxsize=2)
def open_sequences(url: str, payload: bytes) -> Sequences:
    """The sequences that a task's payload describes, opened once a process."""
    values = orjson.loads(payload)
    if values["kind"] == TokenPacking.kind:
        return TokenRows(TokenPacking(**values["packing"]))
    if values["kind"] == OwnPacking.kind:
        return OwnSequences.open(url, values["snapshot"], OwnPacking(**values["packing"]))
    return MegatronSequences.open(MegatronPacking.from_json(values["packing"]), Path(values["order"]))


@lru_cache(maxsize=2)
def _tokenizer(url: str, name: str | None, digest: str) -> Tokenizer:
    return resolve_tokenizer(name) if name else load_tokenizer(url, digest)


class Detokenizer:
    """The text of tokens; a line break for those that are none, such as the end of a document."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._no_text = np.array(sorted(all_special_ids(tokenizer.to_bytes())), dtype=np.int64)

    def __call__(self, tokens: Int64Array) -> str:
        is_text = (tokens < self._tokenizer.vocab_size) & (tokens >= 0) & ~np.isin(tokens, self._no_text)
        cuts = np.flatnonzero(~is_text)
        parts = np.split(tokens, cuts)
        return "\n".join(
            self._tokenizer.decode(part[int(bool(number)) :].tolist()) for number, part in enumerate(parts)
        )


def _batches(
    sequences: Sequences, first: int, count: int, name: str, settings: Settings, text_of: Detokenizer
) -> Iterator[Batch]:
    for start in range(first, first + count, _BATCH_SEQUENCES):
        some = list(sequences.read(start, min(start + _BATCH_SEQUENCES, first + count)))
        yield _batch(some, start, name, settings, text_of)


def _batch(
    sequences: Sequence[PackedSequence], first: int, name: str, settings: Settings, text_of: Detokenizer
) -> Batch:
    """Sequences as the documents of a shard, each chunk with the text that its own tokens stand for."""
    import pyarrow as pa

    m = settings.chunk_tokens
    sizes = np.array([-(-len(sequence.tokens) // m) for sequence in sequences], dtype=np.int64)
    lengths = np.array([len(sequence.tokens) for sequence in sequences], dtype=np.int64)
    first_row = np.cumsum(sizes) - sizes
    position = np.arange(int(sizes.sum())) - np.repeat(first_row, sizes)
    tokens = np.concatenate([sequence.tokens for sequence in sequences])
    _refuse_wide(tokens, settings)
    starts = np.repeat(np.cumsum(lengths) - lengths, sizes) + position * m
    offsets = np.append(starts, len(tokens))
    texts = [text_of(tokens[a:b]) for a, b in pairwise(offsets.tolist())]
    whole = ["".join(texts[row : row + size]) for row, size in zip(first_row.tolist(), sizes.tolist(), strict=True)]
    names = [str(first + number) for number in range(len(sequences))]
    metadata = [orjson.dumps({"documents": list(sequence.documents)}).decode() for sequence in sequences]
    columns = {
        "doc_id": pa.array(names),
        "text": pa.array(whole, pa.large_string()),
        "value": pa.nulls(len(names), pa.large_string()),
        "metadata": pa.array(metadata, pa.large_string()),
        "content_hash": pa.array([content_hash(text, None) for text in whole], pa.binary(16)),
    }
    hashes = [record_hash(text, None, more.encode()) for text, more in zip(whole, metadata, strict=True)]
    ids = id_entries([key_of(name, own) for own in names], hashes, list(range(len(names))))
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
    return Batch(pa.table(columns, schema=spool_schema()), ids, chunks)


def _refuse_wide(tokens: Int64Array, settings: Settings) -> None:
    """Raises MismatchError when the database's files cannot hold the tokens."""
    largest = int(tokens.max(initial=0))
    if largest > np.iinfo(settings.token_dtype).max or tokens.min(initial=0) < 0:
        raise MismatchError(
            f"token {largest} of the sequences does not fit the database's tokens ({settings.token_dtype})",
            remedy="Use a database whose tokenizer is the training set's.",
        )
