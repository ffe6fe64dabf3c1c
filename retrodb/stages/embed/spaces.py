"""Spaces as a whole: listing them, making another one the default, dropping one with all that is its own."""

from __future__ import annotations

from dataclasses import dataclass

from retrodb.engine.run import open_run
from retrodb.errors import MissingStep, UsageError
from retrodb.format.entries import DEFAULT_SPACE_KEY, DefaultSpace, IndexEntry, QueriesEntry, SpaceEntry, TableEntry
from retrodb.format.records import OP_DROP_FILE, DropRecord, FileRecord
from retrodb.stages.context import Context
from retrodb.store import conflict_keys
from retrodb.store.commit import Change, commit
from retrodb.view.view import SELF, View


@dataclass(frozen=True)
class SpaceInfo:
    """One space of a database."""

    space: str
    is_default: bool
    encoder: str
    dimension: int
    metric: str
    chunks: int  # embedded in it
    keeps_vectors: bool  # or only the codes of its index
    factory: str | None  # of its index; None: not indexed
    tables: list[str]  # neighbour tables that were computed in it
    size_bytes: int  # of its vectors, codebook and index parts
    fingerprint: str


@dataclass(frozen=True)
class SpaceChange:
    """What was done to a space."""

    snapshot: int
    space: str
    default_space: str  # from now on
    dropped_files: int
    dropped_bytes: int  # that collection will free
    dropped_tables: list[str]
    dry_run: bool = False


def list_spaces(view: View) -> list[SpaceInfo]:
    """Every space of a snapshot, by name."""
    snapshot = view.snapshot
    spaces = []
    for name in snapshot.names(SpaceEntry):
        entry, index = snapshot.existing(SpaceEntry, name), snapshot.entry(IndexEntry, name)
        files = _own_files(view, name)
        masks = [view.query_vectors(SELF, name).covered_mask(r.first_chunk, r.num_chunks) for r in view.chunks.ranges]
        spaces.append(
            SpaceInfo(
                space=name,
                is_default=name == snapshot.default_space,
                encoder=entry.params.encoder,
                dimension=entry.dimension,
                metric=entry.metric,
                chunks=sum(int(mask.sum()) for mask in masks),
                keeps_vectors=view.keeps_vectors(name),
                factory=index.factory if index else None,
                tables=_tables(view, name),
                size_bytes=sum(record.digest.size_bytes for record in files),
                fingerprint=entry.fingerprint[:16],
            )
        )
    return spaces


def run_drop_space(context: Context, space: str, *, with_tables: bool = False, dry_run: bool = False) -> SpaceChange:
    """Take a space out of the database; the files of all others stay as they are, byte for byte.

    Raises:
        UsageError: it is the default, or neighbour tables rest on it.
    """
    view = context.view()
    _existing(view, space)
    if space == view.snapshot.default_space:
        raise UsageError(
            f"'{space}' is the default space", remedy="Make another one the default first: 'space default'."
        )
    tables = _tables(view, space)
    if tables and not with_tables:
        raise UsageError(
            f"neighbour tables rest on space '{space}': {', '.join(tables)}",
            remedy="Add --with-tables to drop them too.",
        )
    files = _own_files(view, space)
    for table in tables:
        for kind in ("neighbours", "joined", "edits"):
            files += view.manifest.files(kind, table)
    result = SpaceChange(
        snapshot=view.snapshot.number,
        space=space,
        default_space=view.snapshot.default_space,
        dropped_files=len(files),
        dropped_bytes=sum(record.digest.size_bytes for record in files),
        dropped_tables=tables,
        dry_run=dry_run,
    )
    if dry_run:
        return result
    gone = [f"space/{space}", f"index/{space}", f"drift/{space}", *(f"table/{table}" for table in tables)]
    plan = {"drop": space, "files": sorted(record.path for record in files)}
    run = open_run(context.storage, "space", plan, context.clock)
    change = Change(
        transaction=run.id,
        command="space drop",
        arguments={"space": space, "tables": tables},
        clock=run.clock,
        conflict_keys=conflict_keys.drop_space(space, tables),
        drops=[DropRecord(OP_DROP_FILE, record.path) for record in files],
        entries=dict.fromkeys(key for key in gone if key in view.snapshot.entries),
        counts={"files": len(files)},
    )
    snapshot = commit(context.storage, view.snapshot, change)
    return SpaceChange(**{**vars(result), "snapshot": snapshot.number})


def run_default_space(context: Context, space: str, *, dry_run: bool = False) -> SpaceChange:
    """Make a space the one that commands use when none is named: searches change over in this one commit.

    Raises:
        MissingStep: it is not indexed, or has chunks still to be embedded, so searches would miss some.
    """
    view = context.view()
    _existing(view, space)
    if view.snapshot.entry(IndexEntry, space) is None:
        raise MissingStep(f"space '{space}' is not indexed", remedy=f"Run 'retrodb index --space {space}' first.")
    covered = view.query_vectors(SELF, space)
    for record in view.chunks.ranges:
        span = record.first_chunk, record.num_chunks
        if (view.embeddable_mask(*span) & ~covered.covered_mask(*span)).any():
            raise MissingStep(
                f"space '{space}' does not have all chunks yet", remedy=f"Run 'retrodb embed --space {space}' first."
            )
    result = SpaceChange(view.snapshot.number, space, space, 0, 0, [], dry_run)
    if dry_run or space == view.snapshot.default_space:
        return result
    plan = {"default": space, "base": view.snapshot.transaction}
    run = open_run(context.storage, "space", plan, context.clock)
    change = Change(
        transaction=run.id,
        command="space default",
        arguments={"space": space},
        clock=run.clock,
        conflict_keys=conflict_keys.default_space(space),
        entries={DEFAULT_SPACE_KEY: DefaultSpace(space)},
    )
    return SpaceChange(**{**vars(result), "snapshot": commit(context.storage, view.snapshot, change).number})


def _existing(view: View, space: str) -> None:
    if view.snapshot.entry(SpaceEntry, space) is None:
        have = ", ".join(view.snapshot.names(SpaceEntry)) or "none yet"
        raise UsageError(f"no space '{space}'", remedy=f"There are: {have}.")


def _tables(view: View, space: str) -> list[str]:
    names = view.snapshot.names(TableEntry)
    return [name for name in names if view.snapshot.existing(TableEntry, name).space == space]


def _own_files(view: View, space: str) -> list[FileRecord]:
    """The files that only this space needs."""
    files = [record for kind in ("vectors", "parts", "codebooks") for record in view.manifest.files(kind, space)]
    for query_set in view.snapshot.names(QueriesEntry):
        files += view.query_vectors(query_set, space).records
    return files
