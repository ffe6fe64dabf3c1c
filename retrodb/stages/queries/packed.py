"""Stage queries, for packed sequences: a query set of what a trainer reads, instead of documents.

A trainer concatenates documents and cuts the stream into sequences of equal length. A row of the set is a chunk of a
sequence: row `i * l + j` is number j of the l chunks of sequence i. Rows can begin in the middle of a word and cross
documents. Their text is the text of their tokens, with a line break where a document ends.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from retrodb.engine.run import Run, add_counts
from retrodb.engine.task import NoResult, Task
from retrodb.errors import UsageError
from retrodb.format.entries import QueriesEntry
from retrodb.format.json_codec import to_plain
from retrodb.format.kinds import path_of
from retrodb.stages.context import Context
from retrodb.stages.queries.known_tokens import KnownTokens
from retrodb.stages.queries.megatron import SUBSETS, MegatronPacking, parse_blend
from retrodb.stages.queries.own import OwnPacking
from retrodb.stages.queries.packed_task import (
    KIND,
    STAGE_VERSION,
    AnyPacking,
    PackedPayload,
    SequenceSource,
    open_sequences,
    run_packed_task,
    sequence_tokenizer,
)
from retrodb.stages.queries.query_set import QueriesResult, check_name, commit_queries
from retrodb.stages.queries.tokens import TokenPacking
from retrodb.stages.transaction import Transaction
from retrodb.store import conflict_keys
from retrodb.store.cached_lines import cache_folder
from retrodb.store.digest import identity
from retrodb.view.view import View

_TASK_CHUNKS = 1 << 17  # rows of a task: 64 MB of int64 tokens at 64 tokens per chunk


def packing_of(
    *,
    tokens: str | Path | None = None,
    sequences: int | None = None,
    megatron: str | None = None,
    blend: str | None = None,
    seq_length: int | None = None,
    train_samples: int | None = None,
    split: str | None = None,
    seed: int | None = None,
    subset: str | None = None,
    doc_ids: Sequence[str | Path] = (),
) -> AnyPacking:
    """The packing that options describe: rows of token ids, sequences of the database's own documents, or Megatron's.

    Raises:
        UsageError: for an invalid combination.
        InputError: for a file of token ids that cannot be read.
    """
    has_order = split is not None or seed is not None or subset is not None
    if tokens is not None:
        if sequences or megatron or blend or seq_length or train_samples or has_order or len(doc_ids) > 1:
            raise UsageError("--tokens can only be combined with one --doc-ids")
        return TokenPacking.of(str(tokens), str(doc_ids[0]) if doc_ids else None)
    if sequences is not None:
        if megatron or blend or seq_length or train_samples or has_order or doc_ids:
            raise UsageError("--sequences packs the database's own documents and takes none of Megatron's options")
        return OwnPacking(sequences)
    if (megatron is None) == (blend is None):
        raise UsageError("give exactly one of --tokens, --megatron, --blend and --sequences")
    if not seq_length or not train_samples:
        raise UsageError("Megatron's order of samples needs --seq-length and --train-samples of the training run")
    prefixes, weights = parse_blend(blend) if blend else ((str(megatron),), None)
    if subset is not None and subset not in SUBSETS:
        raise UsageError(f"unknown subset '{subset}'", remedy=f"Known are: {', '.join(SUBSETS)}.")
    return MegatronPacking(
        tuple(str(Path(prefix).absolute()) for prefix in prefixes),  # an export names them to a trainer elsewhere
        weights,
        seq_length,
        train_samples,
        split=MegatronPacking.split if split is None else split,
        seed=MegatronPacking.seed if seed is None else seed,
        subset=MegatronPacking.subset if subset is None else subset,
        doc_ids=tuple(map(str, doc_ids)),
    )


@dataclass(frozen=True)
class _RunPlan:
    """What the run's id follows from."""

    name: str
    state: str  # of the files that the sequences are read from
    entry: QueriesEntry
    version: int = STAGE_VERSION


@dataclass(frozen=True)
class PackedPlan:
    """A query set of packed sequences.

    Their number is not in the plan: Megatron's order takes long to build, so it is built once, in the folder of the run.
    """

    view: View
    name: str
    packing: AnyPacking
    tokenizer: str | None  # name; None is the database's
    run_plan: _RunPlan

    @property
    def entry(self) -> QueriesEntry:
        """The entry of the query set."""
        return replace(self.run_plan.entry, content=identity(to_plain(self.run_plan)))

    def source(self, order: str) -> SequenceSource:
        """Where the sequences are read from, with the order of Megatron's samples in a folder."""
        return SequenceSource.of(self.packing, self.view.snapshot.number, order)

    def result(self, num_sequences: int, *, dry_run: bool = False) -> QueriesResult:
        """The result if no sequence is short."""
        num_tokens = num_sequences * self.packing.seq_length
        num_rows = num_tokens // self.view.settings.chunk_tokens
        return QueriesResult(self.view.snapshot.number, self.name, num_sequences, num_rows, num_tokens, dry_run)


def run_add_packed(
    context: Context, name: str, packing: AnyPacking, *, tokenizer: str | None = None, dry_run: bool = False
) -> QueriesResult:
    """Add the sequences of a packing as a query set. It replaces an older set of the same name.

    A dry run builds Megatron's order in a temporary folder.

    Args:
        tokenizer: tokenizer of the sequences; None is the database's.

    Raises:
        UsageError: for an invalid name or sequence length.
        InputError: for a file that does not exist or cannot be read.
        MissingDependency: when megatron-core is needed and not installed.
        MismatchError: for tokens that the files of the database cannot hold.
        ConflictError: when the query set changed since the plan.
    """
    plan = plan_add_packed(context, name, packing, tokenizer=tokenizer)
    if dry_run:
        with tempfile.TemporaryDirectory() as order:
            num_sequences = len(open_sequences(context.storage.url, plan.source(order)))
        return plan.result(num_sequences, dry_run=True)
    return execute_add_packed(context, plan)


def plan_add_packed(context: Context, name: str, packing: AnyPacking, *, tokenizer: str | None = None) -> PackedPlan:
    """Check the options and take the digest of the files of the sequences. Raises as `run_add_packed`."""
    check_name(name)
    view = context.view()
    m = view.settings.chunk_tokens
    is_own_length = isinstance(packing, TokenPacking)  # whose `state` compares it
    if not is_own_length and (packing.seq_length < m or packing.seq_length % m):
        raise UsageError(
            f"sequences of {packing.seq_length} tokens do not divide into chunks", remedy=f"Give a multiple of {m}."
        )
    own_digest = view.settings.tokenizer_sha256
    loaded = sequence_tokenizer(context.storage.url, tokenizer, own_digest)
    if tokenizer and isinstance(packing, OwnPacking) and loaded.digest != own_digest:
        what = "--sequences packs the database's own documents, whose tokens are not of this tokenizer"
        raise UsageError(what, where=tokenizer, remedy="Leave --tokenizer out.")
    state = packing.state(view, KnownTokens(loaded))
    return PackedPlan(view, name, packing, tokenizer, _RunPlan(name, state, packing.entry(loaded.digest)))


def execute_add_packed(context: Context, plan: PackedPlan) -> QueriesResult:
    """Write and commit the query set, unless the database has it already."""
    keys = conflict_keys.queries(plan.name)
    arguments = {"name": plan.name}
    transaction = Transaction.open(context, plan.view, "queries", keys, plan=plan.run_plan, arguments=arguments)
    source = plan.source(str(_order_folder(transaction.run)))
    num_sequences = len(open_sequences(context.storage.url, source))
    result = plan.result(num_sequences)
    if plan.view.snapshot.entry(QueriesEntry, plan.name) == plan.entry:
        return result
    records = transaction.run_tasks(_tasks(plan, source, num_sequences), run_packed_task, unit="tasks")
    files = [(file, record.counts["rows"]) for record in records for file in record.files]
    totals = add_counts(records)
    result = replace(result, num_rows=totals["rows"], num_tokens=totals["tokens"])
    committed = commit_queries(transaction, plan.entry, result, files)
    if "://" in context.storage.url:
        shutil.rmtree(source.order, ignore_errors=True)
    return committed


def _order_folder(run: Run) -> Path:
    """Where megatron-core keeps the order of its samples for all processes: with the run, or on this machine."""
    if "://" in run.storage.url:
        return cache_folder() / "orders" / run.id
    return Path(run.storage.url) / path_of("runs", run=run.id, file="order")


def _tasks(plan: PackedPlan, source: SequenceSource, num_sequences: int) -> list[Task[PackedPayload, NoResult]]:
    step = max(1, _TASK_CHUNKS * plan.view.settings.chunk_tokens // plan.packing.seq_length)
    digest = plan.run_plan.entry.tokenizer or ""
    payloads = [
        PackedPayload(plan.name, source, plan.tokenizer, digest, first, min(step, num_sequences - first))
        for first in range(0, num_sequences, step)
    ]
    return [KIND.task(payload, [plan.run_plan.state]) for payload in payloads]
