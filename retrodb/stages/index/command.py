"""Stage index: one codebook per space, and an immutable index part for the new vectors of each file of vectors.

The cost of adding vectors depends on their number only. A new codebook is trained for a space that has none, or when asked.
Parts are merged afterwards, in a second commit (see `merge`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

from retrodb.ann.codebook import choose_factory, least_sample, sample_size
from retrodb.ann.supported_factory import check_factory
from retrodb.config import IndexParams
from retrodb.engine.run import Engine
from retrodb.errors import ConfigError, MissingStep, UsageError
from retrodb.format.entries import IndexEntry, SpaceEntry
from retrodb.format.json_codec import to_plain_object
from retrodb.stages.context import Context
from retrodb.stages.index.drift import choose_canaries, drift_entry, reasons_to_retrain
from retrodb.stages.index.live_parts import MissingRows, codebook_record, parts_of
from retrodb.stages.index.merge import plan_merge, run_merge
from retrodb.stages.index.missing_task import find_missing_rows
from retrodb.stages.index.part_task import STAGE_VERSION, index_task, part_bytes, run_index_task
from retrodb.stages.index.train_codebook import ROWS_OF_ONE_PROCESS, TrainingResult, TrainingSize, train_codebook
from retrodb.stages.index.training_files import delete_training_files
from retrodb.stages.index.training_tasks import TrainingParams
from retrodb.stages.index.vector_sample import training_sample
from retrodb.stages.planned_view import PlannedSnapshot
from retrodb.stages.transaction import Transaction
from retrodb.store import conflict_keys
from retrodb.view.view import View


@dataclass(frozen=True)
class IndexResult:
    """What an index run did."""

    snapshot: int
    space: str
    factory: str  # FAISS factory string of the codebook that is in use now
    num_lists: int  # inverted lists; 1 for Flat, 0 in a dry run that would train
    is_trained: bool  # whether this run trained the codebook
    num_vectors: int  # added by this run
    num_parts: int  # of the space now
    note: str  # how the training differs from what was asked for
    dry_run: bool = False
    num_merged_parts: int = 0  # that were replaced by fewer
    retrain_reason: str = ""  # why `--retrain` would improve the index
    assignment_recall: float | None = (
        None  # of the neighbours that an exact assignment to lists finds; None: it is exact
    )


@dataclass(frozen=True)
class IndexPlan:
    """What an index run adds, before the merge."""

    view: View
    params: IndexParams
    entry: IndexEntry | None  # of the space now
    missing: tuple[MissingRows, ...]  # what to add of each file of vectors
    result: IndexResult  # that a dry run prints


@dataclass(frozen=True)
class _RunPlan:
    """What the run's id follows from."""

    space: str  # fingerprint
    params: IndexParams
    codebook: str | None  # in use; None where this run trains one
    previous: str | None  # codebook of the space before the run
    vectors: tuple[tuple[str, str, str | None], ...]  # path, digest, and digest of the rows to add
    version: int = STAGE_VERSION


def run_index(
    context: Context, params: IndexParams, *, space: str | None = None, retrain: bool = False, dry_run: bool = False
) -> IndexResult:
    """Index what is embedded and not yet indexed, then merge parts.

    Raises:
        MissingStep: when the space has no vectors.
        ConfigError: for a factory that FAISS does not know or that is not supported, or a sample too small for it.
        UsageError: for options that need another codebook than the space has.
        ConflictError: when the index or the vectors of the space changed since the plan.
    """
    plan = plan_index(context, params, space=space, retrain=retrain)
    return plan.result if dry_run else execute_index(context, plan)


def plan_index(context: Context, params: IndexParams, *, space: str | None = None, retrain: bool = False) -> IndexPlan:
    """Find the vectors to index. Raises as `run_index`."""
    view = context.view()
    name = space or view.snapshot.default_space
    entry = view.snapshot.entry(IndexEntry, name)
    is_new = retrain or entry is None
    _check(view, name, params, entry, is_new)
    if is_new and params.factory != "auto":
        space_entry = view.snapshot.existing(SpaceEntry, name)
        check_factory(params.factory, space_entry.dimension, space_entry.metric)
    old_parts = [] if is_new else parts_of(view, name)
    missing = find_missing_rows(context, view, name, is_new=is_new)
    merge = plan_merge(view, name).result  # of the parts that are there before the run
    result = IndexResult(
        snapshot=view.snapshot.number,
        space=name,
        factory=entry.factory if entry and not is_new else _factory(view, name, params),
        num_lists=entry.lists if entry and not is_new else 0,
        is_trained=is_new,
        num_vectors=sum(part.num_rows for part in missing),
        num_parts=len(old_parts) + len(missing),
        note=entry.note if entry and not is_new else "",
        assignment_recall=entry.assignment_recall if entry and not is_new else None,
        dry_run=True,
        num_merged_parts=merge.num_merged_parts,
        retrain_reason=", ".join(reasons_to_retrain(view, name)),
    )
    return IndexPlan(view, params, entry, missing, result)


def execute_index(context: Context, plan: IndexPlan) -> IndexResult:
    """Add the missing vectors, with a new codebook where one is planned, then merge parts."""
    result = replace(plan.result, dry_run=False)
    if plan.missing or result.is_trained:
        result = _add(context, plan, result)
    merge = run_merge(context, result.space)
    return replace(
        result,
        snapshot=merge.snapshot,
        num_parts=merge.num_parts,
        num_merged_parts=merge.num_merged_parts,
        retrain_reason=", ".join(reasons_to_retrain(context.view(), result.space)),
    )


def _check(view: View, space: str, params: IndexParams, entry: IndexEntry | None, is_new: bool) -> None:
    is_embedded = view.snapshot.entry(SpaceEntry, space) is not None
    if not is_embedded or not (view.manifest.files("vectors", space) or entry):
        raise MissingStep(f"space '{space}' has no vectors", remedy="Run 'retrodb embed' first.")
    if is_new and not view.keeps_vectors(space):
        raise UsageError(
            f"space '{space}' was embedded without keeping vectors, so there is nothing to train a new index on",
            remedy="Embed into a new space, and drop this one.",
        )
    if entry and not is_new and params not in (IndexParams(), entry.params):
        raise UsageError(
            f"space '{space}' already has a codebook ({entry.factory}), and these options need another one",
            remedy="Add '--retrain' to train a new one and index everything again, or leave the options out.",
        )


def _add(context: Context, plan: IndexPlan, result: IndexResult) -> IndexResult:
    """Train if there is no codebook, build the parts, and commit both with the drift that they show."""
    is_small = result.num_vectors <= ROWS_OF_ONE_PROCESS
    with (context.engine.here() if is_small else context.engine).sharing_processes() as engine:
        return _add_by(context, engine, plan, result)


def _add_by(context: Context, engine: Engine, plan: IndexPlan, result: IndexResult) -> IndexResult:
    view, name, entry = plan.view, result.space, plan.entry
    stored = view.snapshot.existing(SpaceEntry, name)
    fingerprint, dimension = stored.fingerprint, stored.dimension
    in_use = None if entry is None or result.is_trained else entry
    run_plan = _RunPlan(
        space=fingerprint,
        params=plan.params,
        codebook=in_use.codebook if in_use else None,
        previous=entry.codebook if entry else None,
        vectors=tuple((part.vectors.path, part.vectors.digest.sha256.hex(), part.rows) for part in plan.missing),
    )
    arguments = {"space": name, **to_plain_object(plan.params)}
    if in_use is None:
        _check_training(plan, result.factory, context.memory_limit)
    keys = conflict_keys.retrain(name) if in_use is None else conflict_keys.index(name)
    transaction = Transaction.open(context, view, "index", keys, plan=run_plan, arguments=arguments)
    canaries = None
    if in_use is None:
        trained = _trained(transaction, engine, name, plan)
        canaries = choose_canaries(view, name, plan.missing if trained.num_lists > 1 else (), plan.params.seed)
        transaction.drop_files([*view.manifest.files("parts", name), *view.manifest.files("codebooks", name)])
        in_use = replace(trained.entry(plan.params, result.factory), fingerprint=fingerprint)
        transaction.set_entry(name, in_use)
    else:
        codebook_record(view, name)  # raises where the index is not of this space
    tasks = [index_task(name, in_use.codebook, part, is_new=result.is_trained) for part in plan.missing]
    extra_bytes, snapshot = part_bytes(dimension, in_use.lists), PlannedSnapshot.of(view)
    function = partial(run_index_task, snapshot=snapshot, threads=context.threads_for(tasks, extra_bytes, engine))
    records = transaction.run_tasks(tasks, function, engine=engine, extra_bytes=extra_bytes)
    transaction.add_files(records)
    transaction.set_entry(name, drift_entry(transaction, engine, name, in_use, records, canaries))
    transaction.counts = {"vectors": result.num_vectors}
    number = transaction.commit().number
    delete_training_files(transaction.run)
    return replace(
        result,
        snapshot=number,
        factory=in_use.factory,
        num_lists=in_use.lists,
        note=in_use.note,
        assignment_recall=in_use.assignment_recall,
    )


def _factory(view: View, space: str, params: IndexParams) -> str:
    if params.factory != "auto":
        return params.factory
    entry = view.snapshot.existing(SpaceEntry, space)
    num_vectors = sum(record.num_rows for record in view.manifest.files("vectors", space))
    return choose_factory(
        num_vectors, entry.dimension, params.search_memory_bytes, params.bytes_per_vector, entry.metric
    )


def _check_training(plan: IndexPlan, factory: str, memory_bytes: int) -> None:
    """Raises NotEnoughMemory when the training sample does not fit into the limit."""
    num_vectors = plan.result.num_vectors
    size = min(num_vectors, max(1, plan.params.train_sample or sample_size(factory)))
    dimension = plan.view.snapshot.existing(SpaceEntry, plan.result.space).dimension
    TrainingSize(factory, size, dimension).check(memory_bytes)


def _trained(transaction: Transaction, engine: Engine, space: str, plan: IndexPlan) -> TrainingResult:
    """A codebook trained on a seeded random sample of the vectors of all shards."""
    view, params, num_rows = plan.view, plan.params, plan.result.num_vectors
    if not num_rows:
        raise MissingStep(
            f"all chunks of space '{space}' are deleted", remedy="Ingest more, or undelete some documents."
        )
    factory = _factory(view, space, params)
    least = least_sample(factory)
    if params.train_sample is not None and params.train_sample < least <= num_rows:
        raise ConfigError(
            f"{factory} needs at least {least} training vectors, and --train-sample allows {params.train_sample}",
            remedy="Ask for fewer lists, or leave --train-sample out.",
        )
    size = max(1, params.train_sample or sample_size(factory))
    stored = view.snapshot.existing(SpaceEntry, space)
    sample = training_sample(transaction, engine, space, plan.missing, size, params.seed)
    training = TrainingParams(transaction.run.id, space, factory, stored.metric, params.seed)
    return train_codebook(transaction, engine, training, sample, stored.dimension)
