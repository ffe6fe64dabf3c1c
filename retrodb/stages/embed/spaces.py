"""Commands on whole spaces: list them, choose the default, drop one with everything that belongs to it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from retrodb.errors import MissingStep, UsageError
from retrodb.format.entries import DefaultSpace, DriftEntry, IndexEntry, QueriesEntry, SpaceEntry, TableEntry
from retrodb.format.kinds import TABLE_KINDS
from retrodb.format.records import FileRecord
from retrodb.stages.context import Context
from retrodb.stages.transaction import Transaction
from retrodb.store import conflict_keys
from retrodb.view.shard_counts import num_covered, num_pending_chunks
from retrodb.view.view import View


@dataclass(frozen=True)
class SpaceInfo:
    """One space of a database."""

    space: str
    is_default: bool
    encoder: str
    dimension: int
    metric: str
    num_chunks: int  # live ones with a vector in it
    keeps_vectors: bool  # else only the codes of its index are stored
    factory: str | None  # FAISS factory string of its index; None: not indexed
    tables: list[str]  # neighbour tables that were computed in it
    size_bytes: int  # of its vectors, codebook and index parts
    fingerprint: str  # first digits


@dataclass(frozen=True)
class SpaceChange:
    """What was done to a space."""

    snapshot: int
    space: str
    default_space: str  # after the change
    num_dropped_files: int
    dropped_bytes: int  # that garbage collection will free
    dropped_tables: list[str]
    dry_run: bool = False


@dataclass(frozen=True)
class DropSpacePlan:
    """What dropping a space removes."""

    view: View
    space: str
    tables: list[str]
    files: list[FileRecord]
    result: SpaceChange  # that a dry run prints


@dataclass(frozen=True)
class DefaultSpacePlan:
    """A space that becomes the default."""

    view: View
    space: str
    is_default: bool  # already
    result: SpaceChange  # that a dry run prints


def list_spaces(view: View) -> list[SpaceInfo]:
    """Every space of a snapshot, by name."""
    return [_space_info(view, name) for name in view.snapshot.names(SpaceEntry)]


def _space_info(view: View, name: str) -> SpaceInfo:
    snapshot = view.snapshot
    entry, index = snapshot.existing(SpaceEntry, name), snapshot.entry(IndexEntry, name)
    return SpaceInfo(
        space=name,
        is_default=name == snapshot.default_space,
        encoder=entry.params.encoder,
        dimension=entry.dimension,
        metric=entry.metric,
        num_chunks=int(num_covered(view, name).sum()),
        keeps_vectors=view.keeps_vectors(name),
        factory=index.factory if index else None,
        tables=_tables(view, name),
        size_bytes=sum(record.digest.size_bytes for record in _own_files(view, name)),
        fingerprint=entry.fingerprint[:16],
    )


def run_drop_space(context: Context, space: str, *, with_tables: bool = False, dry_run: bool = False) -> SpaceChange:
    """Drop a space from the database. The files of all other spaces stay the same, byte for byte.

    Raises:
        UsageError: when it does not exist, is the default, or has neighbour tables and `with_tables` is false.
        ConflictError: when the space or its tables changed since the plan.
    """
    plan = plan_drop_space(context.view(), space, with_tables=with_tables)
    return plan.result if dry_run else execute_drop_space(context, plan)


def plan_drop_space(view: View, space: str, *, with_tables: bool = False) -> DropSpacePlan:
    """Find what dropping a space removes. Raises UsageError as `run_drop_space`."""
    _refuse_unknown(view, space)
    if space == view.snapshot.default_space:
        raise UsageError(
            f"'{space}' is the default space", remedy="Make another one the default first: 'space default'."
        )
    tables = _tables(view, space)
    if tables and not with_tables:
        raise UsageError(
            f"neighbour tables depend on space '{space}': {', '.join(tables)}",
            remedy="Add --with-tables to drop them too.",
        )
    files = _own_files(view, space)
    files += [record for table in tables for kind in TABLE_KINDS for record in view.manifest.files(kind, table)]
    result = SpaceChange(
        snapshot=view.snapshot.number,
        space=space,
        default_space=view.snapshot.default_space,
        num_dropped_files=len(files),
        dropped_bytes=sum(record.digest.size_bytes for record in files),
        dropped_tables=tables,
        dry_run=True,
    )
    return DropSpacePlan(view, space, tables, files, result)


def execute_drop_space(context: Context, plan: DropSpacePlan) -> SpaceChange:
    """Commit the removal of a space. Raises ConflictError when the space or its tables changed since the plan."""
    transaction = Transaction.open(
        context,
        plan.view,
        "space drop",
        conflict_keys.drop_space(plan.space, plan.tables),
        plan={"drop": plan.space, "files": sorted(record.path for record in plan.files)},
        arguments={"space": plan.space, "tables": plan.tables},
        run_command="space",
    )
    transaction.drop_files(plan.files)
    for kind in (SpaceEntry, IndexEntry, DriftEntry):
        if plan.view.snapshot.entry(kind, plan.space) is not None:
            transaction.remove_entry(kind, plan.space)
    for table in plan.tables:
        transaction.remove_entry(TableEntry, table)
    transaction.counts = {"files": len(plan.files)}
    return replace(plan.result, snapshot=transaction.commit().number, dry_run=False)


def run_default_space(context: Context, space: str, *, dry_run: bool = False) -> SpaceChange:
    """Make a space the default: from this commit on, commands use it when none is named.

    Raises:
        UsageError: when it does not exist.
        MissingStep: when it is not indexed or not fully embedded, so searches would miss chunks.
        ConflictError: when it was dropped, or another default was set, since the plan.
    """
    plan = plan_default_space(context.view(), space)
    return plan.result if dry_run else execute_default_space(context, plan)


def plan_default_space(view: View, space: str) -> DefaultSpacePlan:
    """Check that a space can be the default. Raises UsageError and MissingStep as `run_default_space`."""
    _refuse_unknown(view, space)
    if view.snapshot.entry(IndexEntry, space) is None:
        raise MissingStep(f"space '{space}' is not indexed", remedy=f"Run 'retrodb index --space {space}' first.")
    if num_pending_chunks(view, space):
        raise MissingStep(
            f"space '{space}' does not have all chunks yet", remedy=f"Run 'retrodb embed --space {space}' first."
        )
    is_default = space == view.snapshot.default_space
    result = SpaceChange(view.snapshot.number, space, space, 0, 0, [], dry_run=True)
    return DefaultSpacePlan(view, space, is_default, result)


def execute_default_space(context: Context, plan: DefaultSpacePlan) -> SpaceChange:
    """Commit the new default, unless it is the default already."""
    if plan.is_default:
        return replace(plan.result, dry_run=False)
    transaction = Transaction.open(
        context,
        plan.view,
        "space default",
        conflict_keys.default_space(plan.space),
        plan={"default": plan.space, "base": plan.view.snapshot.transaction},
        arguments={"space": plan.space},
        run_command="space",
    )
    transaction.set_entry("space", DefaultSpace(plan.space))
    return replace(plan.result, snapshot=transaction.commit().number, dry_run=False)


def _refuse_unknown(view: View, space: str) -> None:
    if view.snapshot.entry(SpaceEntry, space) is None:
        names = ", ".join(view.snapshot.names(SpaceEntry)) or "none yet"
        raise UsageError(f"no space '{space}'", remedy=f"There are: {names}.")


def _tables(view: View, space: str) -> list[str]:
    names = view.snapshot.names(TableEntry)
    return [name for name in names if view.snapshot.existing(TableEntry, name).space == space]


def _own_files(view: View, space: str) -> list[FileRecord]:
    """The files that only this space needs."""
    files = [record for kind in ("vectors", "parts", "codebooks") for record in view.manifest.files(kind, space)]
    for query_set in view.snapshot.names(QueriesEntry):
        files += view.query_vectors(query_set, space).records
    return files
