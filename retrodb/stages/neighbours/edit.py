"""Edits of a neighbour table: ban, pin or replace one neighbour of one row, and undo it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np

from retrodb.ann.exact import Block, exact_topk
from retrodb.engine.run import open_run
from retrodb.errors import UsageError
from retrodb.format.entries import SpaceEntry
from retrodb.format.kinds import path_of
from retrodb.format.parquet import write_table
from retrodb.format.records import OP_DROP_FILE, DropRecord
from retrodb.stages.context import Context
from retrodb.stages.index.live_parts import database_keys
from retrodb.stages.neighbours.command import exclusion_of
from retrodb.store import conflict_keys
from retrodb.store.commit import Change, commit
from retrodb.store.publish import publish
from retrodb.view.edits import BAN, PIN, Edit, Edits
from retrodb.view.neighbour_table import NeighbourTable, live_first
from retrodb.view.view import SELF

STAGE_VERSION = 1


@dataclass(frozen=True)
class EditResult:
    """What an edit did to its row."""

    snapshot: int
    table: str
    row: int
    before: tuple[int, ...]  # the first k neighbours
    after: tuple[int, ...]
    bans: tuple[int, ...]  # of the row, with this edit
    pins: tuple[int, ...]  # likewise
    dry_run: bool = False


def run_edit_neighbours(
    context: Context,
    row: int,
    *,
    table: str | None = None,
    ban: int | None = None,
    pin: int | None = None,
    replace: tuple[int, int] | None = None,
    undo: bool = False,
    dry_run: bool = False,
) -> EditResult:
    """Ban a neighbour of a row, pin a chunk before all others, or do both at once; or take such an edit back.

    A banned neighbour's place goes to the next one that the row keeps; what is done twice is done once.

    Args:
        replace: the neighbour that goes, and the chunk that comes.

    Raises:
        MissingStep: when there is no such table.
        UsageError: for rows and ids that cannot be meant.
    """
    source = NeighbourTable(context.view(), table)
    view, rows = source.view, np.array([row], dtype=np.int64)
    if not np.isin(row, source.rows()):
        raise UsageError(
            f"table '{source.name}' has no live row {row}", remedy="Rows are chunk ids, or rows of the query set."
        )
    wanted = _wanted(ban, pin, replace)
    old = source.edits.of_row(row)
    if undo:
        for action, chunk in wanted:
            if (action, chunk) not in [(edit.action, edit.chunk) for edit in old]:
                raise UsageError(f"row {row} has no {action} of chunk {chunk} to undo")
        own = [edit for edit in old if (edit.action, edit.chunk) not in wanted]
    else:
        if replace:
            _refuse_absent(source, row, replace[0])
        new = [_edit(source, row, action, chunk) for action, chunk in wanted]
        own = [edit for edit in old if edit.chunk not in [each.chunk for each in new]] + new
    before, _ = source.read(rows)
    after, _ = live_first(view, *Edits(own).apply(rows, *source.stored(rows)), source.k)
    number = view.snapshot.number
    if not dry_run and own != old:
        number = _commit(context, source, [edit for edit in source.edits.all if edit.row != row] + own)
    return EditResult(
        snapshot=number,
        table=source.name,
        row=row,
        before=tuple(before[0].tolist()),
        after=tuple(after[0].tolist()),
        bans=tuple(edit.chunk for edit in own if edit.action == BAN),
        pins=tuple(edit.chunk for edit in own if edit.action == PIN),
        dry_run=dry_run,
    )


def _wanted(ban: int | None, pin: int | None, replace: tuple[int, int] | None) -> list[tuple[str, int]]:
    """Actions and chunks."""
    if sum(each is not None for each in (ban, pin, replace)) != 1:
        raise UsageError("an edit does one thing", remedy="Give one of --ban, --pin and --replace.")
    if replace is not None:
        if replace[0] == replace[1]:
            raise UsageError(f"chunk {replace[0]} cannot replace itself")
        return [(BAN, replace[0]), (PIN, replace[1])]
    return [(BAN, ban)] if ban is not None else [(PIN, pin)] if pin is not None else []


def _refuse_absent(table: NeighbourTable, row: int, chunk: int) -> None:
    ids, _ = table.read(np.array([row]))
    if chunk not in ids[0]:
        have = ", ".join(map(str, ids[0][ids[0] >= 0].tolist())) or "none"
        raise UsageError(f"chunk {chunk} is no neighbour of row {row}", remedy=f"Its neighbours are: {have}.")


def _edit(table: NeighbourTable, row: int, action: str, chunk: int) -> Edit:
    """The edit, after what it names was found to be possible."""
    view, ids = table.view, np.array([chunk], dtype=np.int64)
    if not view.chunks.is_live(ids)[0]:
        raise UsageError(f"there is no live chunk {chunk}", remedy="'retrodb search' shows the ids of chunks.")
    if action == BAN:
        return Edit(row, BAN, chunk, float("inf"))
    space, queries, rows = table.entry.space, table.query_set, np.array([row], dtype=np.int64)
    if not view.query_vectors(SELF, space).covered_mask(chunk, 1)[0]:
        raise UsageError(f"chunk {chunk} has no vector in space '{space}'", remedy="Pin another chunk of its document.")
    params = table.entry.params
    exclusion = exclusion_of(view, queries, params, rows)
    keys = {kind: database_keys(view, kind, ids) for kind in params.exclude}
    is_itself = queries == SELF and chunk == row
    if is_itself or exclusion.mask(exclusion.stack(keys, 1))[0, 0]:
        why = " or ".join(params.exclude) or "chunk"
        raise UsageError(f"chunk {chunk} is excluded for row {row}: the same {why}", remedy="Pin another document's.")
    metric = view.snapshot.existing(SpaceEntry, space).metric
    block = Block(ids, view.vectors(space, ids))
    _, distances = exact_topk(view.vectors(space, rows, queries), [block], 1, metric)
    return Edit(row, PIN, chunk, float(distances[0, 0]))


def _commit(context: Context, table: NeighbourTable, edits: list[Edit]) -> int:
    """Write all edits of the table in the place of the older file, and give the new snapshot's number."""
    view, name = table.view, table.name
    content = Edits(edits)
    plan = {"version": STAGE_VERSION, "table": name, "snapshot": view.snapshot.number}
    plan["edits"] = content.to_table().to_pylist()
    run = open_run(context.storage, "edit", plan, context.clock)
    files = []
    if edits:
        write = partial(write_table, table=content.to_table())
        files.append(publish(context.storage, "edits", path_of("edits", name=name, task=run.id), write, name=name))
    change = Change(
        transaction=run.id,
        command="edit",
        arguments={"table": name},
        clock=run.clock,
        conflict_keys=conflict_keys.edit(name),
        files=files,
        drops=[DropRecord(OP_DROP_FILE, record.path) for record in view.manifest.files("edits", name)],
        counts={"edits": len(edits)},
    )
    return commit(context.storage, view.snapshot, change).number
