"""Stage ingest: files -> documents of one source -> shards.

Two passes. The first one reads the input and decides what happens to each record (`plan.py`). The second one tokenizes what
becomes a document (`tokenize.py`). One commit adds the shards, deletes the documents that they replace, and remembers
the input files (`change.py`).

Always: read = added + unchanged + superseded + duplicate + held out + rejected.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

import numpy as np

from retrodb.config import IngestParams
from retrodb.engine.run import Run, add_counts
from retrodb.engine.task import Task
from retrodb.format.arrays import map_array
from retrodb.format.kinds import path_of
from retrodb.stages.context import Context
from retrodb.stages.ingest.change import (
    HELD_OUT_SET,
    TokenizeRecord,
    add_held_out,
    add_inputs,
    add_rejects,
    add_shards,
    add_stale,
)
from retrodb.stages.ingest.plan import FirstPass, IngestPlan, IngestResult, plan_ingest
from retrodb.stages.ingest.read_tasks import engine_for
from retrodb.stages.ingest.tokenize import TOKENIZE, TokenizePayload, TokenizeResult, run_tokenize
from retrodb.stages.ingest.upsert import ADDED, HELD_OUT, SUPERSEDES
from retrodb.stages.transaction import CompleteTransaction, Transaction
from retrodb.store import conflict_keys
from retrodb.store.storage import Storage
from retrodb.view.view import SELF


def run_ingest(
    context: Context,
    inputs: Sequence[str],
    params: IngestParams,
    *,
    files_from: Sequence[str] = (),
    dry_run: bool = False,
    given: Collection[str] | None = None,
    change_options: bool = False,
    complete: CompleteTransaction | None = None,
) -> IngestResult:
    """Ingest files into one source.

    Args:
        given, change_options: see `plan_ingest`.
        complete: called before the commit, with the new shards in view. `dedup/screened_ingest.py` screens them here.

    Raises:
        UsageError, InputError: for invalid inputs or options, or options that differ from those of the last ingest.
        TooManyRejects: more records are rejected than `max_reject_rate` allows. Nothing is committed.
        ConflictError: another ingest of the source committed first.
    """
    plan = plan_ingest(context, inputs, params, files_from=files_from, given=given, change_options=change_options)
    return plan.result if dry_run else execute_ingest(context, plan, complete=complete)


def execute_ingest(context: Context, plan: IngestPlan, *, complete: CompleteTransaction | None = None) -> IngestResult:
    """Tokenize what the plan keeps, and commit it.

    Raises:
        ConflictError: another ingest of the source committed first.
    """
    result, first_pass = replace(plan.result, dry_run=False), plan.first_pass
    if first_pass is None:
        return result
    if plan.params.limit is not None and not plan.has_changes:
        _delete_spool(context.storage, first_pass.run)
        return result
    transaction = _open(context, plan, first_pass)
    shards = _tokenize(transaction, plan, first_pass)
    counts = add_counts(shards)
    transaction.counts = {**first_pass.counts, **counts}
    snapshot = transaction.commit(complete)
    _delete_spool(context.storage, first_pass.run)
    return replace(
        result,
        snapshot=snapshot.number,
        num_chunks=counts.get("chunks", 0),
        num_tokens=counts.get("tokens", 0),
        rejects_path=path_of("rejects", task=first_pass.run.id) if first_pass.rejects.num_rows else None,
    )


def _open(context: Context, plan: IngestPlan, first_pass: FirstPass) -> Transaction:
    decisions = first_pass.decisions
    touches_held_out = decisions.num_by_outcome[HELD_OUT] > 0 or bool(decisions.stale_held_out)
    keys = conflict_keys.ingest(plan.params.source, HELD_OUT_SET if touches_held_out else None)
    return Transaction.of_run(context, plan.view, first_pass.run, "ingest", keys, arguments=plan.params)


def _tokenize(transaction: Transaction, plan: IngestPlan, first_pass: FirstPass) -> list[TokenizeRecord]:
    """Run the second pass and add all that the ingest changes; gives the records of the database's own shards."""
    tasks, held_out_tasks = _tasks(transaction, plan, first_pass)
    all_tasks = [*tasks, *held_out_tasks]
    engine = engine_for(transaction.context, all_tasks)
    records = transaction.run_tasks(all_tasks, run_tokenize, engine=engine, unit="B", rate_of="chunks")
    shards, held_out = records[: len(tasks)], records[len(tasks) :]
    add_shards(transaction, shards, plan.params.source)
    add_stale(transaction, SELF, first_pass.decisions.stale)
    add_held_out(transaction, held_out)
    add_stale(transaction, HELD_OUT_SET, first_pass.decisions.stale_held_out)
    add_rejects(transaction, first_pass.rejects, plan.params.source)
    add_inputs(transaction, plan.inputs, plan.params, first_pass.decisions, first_pass.rejects)
    return shards


TokenizeTasks = list[Task[TokenizePayload, TokenizeResult]]


def _tasks(transaction: Transaction, plan: IngestPlan, first_pass: FirstPass) -> tuple[TokenizeTasks, TokenizeTasks]:
    """The tasks for shards of the database, and for files of the held-out query set."""
    run, outcomes_file = first_pass.run, first_pass.decisions.outcomes
    outcomes = map_array(run.storage.local(outcomes_file.path))
    tasks: dict[str, TokenizeTasks] = {SELF: [], HELD_OUT_SET: []}
    first = 0
    for segment in first_pass.segments:
        of_segment = outcomes[first : first + segment.num_records]
        inputs = [segment.spool.digest.sha256.hex(), outcomes_file.digest.sha256.hex(), run.clock]
        for query_set, codes in ((SELF, (ADDED, SUPERSEDES)), (HELD_OUT_SET, (HELD_OUT,))):
            if np.isin(of_segment, codes).any():
                payload = TokenizePayload(
                    spool=segment.spool.path,
                    keys=segment.keys.path,
                    outcomes=outcomes_file.path,
                    first_record=first,
                    num_records=segment.num_records,
                    keep=codes,
                    source=plan.params.source,
                    query_set=query_set,
                )
                tasks[query_set].append(TOKENIZE.task(payload, inputs, segment.spool.digest.size_bytes))
        first += segment.num_records
    return tasks[SELF], tasks[HELD_OUT_SET]


def _delete_spool(storage: Storage, run: Run) -> None:
    """Delete what only the second pass needed. If this is interrupted, garbage collection does it."""
    for path in storage.list(path_of("runs", run=run.id, file="spool")):
        storage.delete(path)
