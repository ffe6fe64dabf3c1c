"""Edits of a neighbour table: ban, pin or replace one neighbour of one row, and undo it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import partial

import numpy as np

from retrodb.ann.exact import Block, exact_topk
from retrodb.errors import UsageError
from retrodb.format.entries import SpaceEntry
from retrodb.format.kinds import path_of
from retrodb.format.parquet import write_table
from retrodb.stages.context import Context
from retrodb.stages.index.live_parts import database_keys, key_kinds
from retrodb.stages.neighbours.show import refuse_dead_row
from retrodb.stages.neighbours.table_inputs import exclusion_of
from retrodb.stages.transaction import Transaction
from retrodb.store import conflict_keys
from retrodb.view.edits import BAN, PIN, Edit, Edits
from retrodb.view.neighbour_table import NeighbourTable, live_first
from retrodb.view.view import SELF, View

STAGE_VERSION = 1


@dataclass(frozen=True)
class EditResult:
    """What an edit did to its row."""

    snapshot: int
    table: str
    row: int
    before: tuple[int, ...]  # the first k neighbours before the edit
    after: tuple[int, ...]  # and after it
    bans: tuple[int, ...]  # chunks that are banned from the row after the edit
    pins: tuple[int, ...]  # chunks that are pinned to the row after the edit
    dry_run: bool = False


@dataclass(frozen=True)
class EditPlan:
    """The edits of a table after one more edit."""

    view: View
    table: str
    edits: Edits  # of all rows
    is_changed: bool  # false when the edit is in effect already
    result: EditResult  # that a dry run prints


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
    """Ban a neighbour of a row, pin a chunk before all others, or do both at once; or undo such an edit.

    The next neighbour that the row stores takes the position of a banned one. Repeating an edit changes nothing.

    Args:
        replace: the neighbour to ban and the chunk to pin.

    Raises:
        MissingStep: when there is no such table.
        UsageError: for an unknown row or chunk, or an invalid combination.
        ConflictError: when the edits of the table changed since the plan.
    """
    plan = plan_edit_neighbours(context.view(), row, table=table, ban=ban, pin=pin, replace=replace, undo=undo)
    return plan.result if dry_run else execute_edit_neighbours(context, plan)


def plan_edit_neighbours(
    view: View,
    row: int,
    *,
    table: str | None = None,
    ban: int | None = None,
    pin: int | None = None,
    replace: tuple[int, int] | None = None,
    undo: bool = False,
) -> EditPlan:
    """Check an edit and show its effect. Raises MissingStep and UsageError as `run_edit_neighbours`."""
    neighbour_table, rows = NeighbourTable(view, table), np.array([row], dtype=np.int64)
    refuse_dead_row(neighbour_table, row)
    actions = _actions(ban, pin, replace)
    old = neighbour_table.edits.of_row(row)
    if undo:
        edits = _without(old, row, actions)
    else:
        if replace:
            _refuse_absent(neighbour_table, row, replace[0])
        new = [_edit(neighbour_table, row, action, chunk) for action, chunk in actions]
        edits = [edit for edit in old if edit.chunk not in [other.chunk for other in new]] + new
    before, _ = neighbour_table.read(rows)
    after, _ = live_first(view, *Edits(edits).apply(rows, *neighbour_table.stored(rows)), neighbour_table.k)
    result = EditResult(
        snapshot=view.snapshot.number,
        table=neighbour_table.name,
        row=row,
        before=tuple(before[0].tolist()),
        after=tuple(after[0].tolist()),
        bans=tuple(edit.chunk for edit in edits if edit.action == BAN),
        pins=tuple(edit.chunk for edit in edits if edit.action == PIN),
        dry_run=True,
    )
    other_rows = [edit for edit in neighbour_table.edits.all if edit.row != row]
    return EditPlan(view, neighbour_table.name, Edits(other_rows + edits), edits != old, result)


def execute_edit_neighbours(context: Context, plan: EditPlan) -> EditResult:
    """Commit all edits of the table in place of the older file, unless nothing changed."""
    if not plan.is_changed:
        return dataclasses.replace(plan.result, dry_run=False)
    name, number, content = plan.table, plan.view.snapshot.number, plan.edits.to_table()
    transaction = Transaction.open(
        context,
        plan.view,
        "edit",
        conflict_keys.edit(name),
        plan={"version": STAGE_VERSION, "table": name, "snapshot": number, "edits": content.to_pylist()},
        arguments={"table": name},
    )
    if plan.edits.all:
        path = path_of("edits", name=name, task=transaction.run.id)
        transaction.publish("edits", path, partial(write_table, table=content), name=name)
    transaction.drop_files(plan.view.manifest.files("edits", name))
    transaction.counts = {"edits": len(plan.edits.all)}
    return dataclasses.replace(plan.result, snapshot=transaction.commit().number, dry_run=False)


def _actions(ban: int | None, pin: int | None, replace: tuple[int, int] | None) -> list[tuple[str, int]]:
    """Each action with its chunk."""
    if [ban, pin, replace].count(None) != 2:
        raise UsageError("give exactly one edit", remedy="Give one of --ban, --pin and --replace.")
    if replace is not None:
        if replace[0] == replace[1]:
            raise UsageError(f"chunk {replace[0]} cannot replace itself")
        return [(BAN, replace[0]), (PIN, replace[1])]
    return [(BAN, ban)] if ban is not None else [(PIN, pin)] if pin is not None else []


def _without(edits: list[Edit], row: int, actions: list[tuple[str, int]]) -> list[Edit]:
    """The edits of a row without some actions. Raises UsageError when one of them is not among the edits."""
    for action, chunk in actions:
        if (action, chunk) not in [(edit.action, edit.chunk) for edit in edits]:
            raise UsageError(f"row {row} has no {action} of chunk {chunk} to undo")
    return [edit for edit in edits if (edit.action, edit.chunk) not in actions]


def _refuse_absent(table: NeighbourTable, row: int, chunk: int) -> None:
    """Raises UsageError when a chunk is not a neighbour of a row."""
    ids, _ = table.read(np.array([row]))
    if chunk not in ids[0]:
        neighbours = ", ".join(map(str, ids[0][ids[0] >= 0].tolist())) or "none"
        raise UsageError(f"chunk {chunk} is not a neighbour of row {row}", remedy=f"Its neighbours are: {neighbours}.")


def _edit(table: NeighbourTable, row: int, action: str, chunk: int) -> Edit:
    """A checked edit.

    Raises:
        UsageError: for a chunk that is deleted, has no vector, or is excluded for the row.
    """
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
    keys = {kind: database_keys(view, kind, ids) for kind in key_kinds(params.exclude)}
    is_itself = queries == SELF and chunk == row
    if is_itself or exclusion.mask(exclusion.stack(keys, 1), ids)[0, 0]:
        why = " or ".join(params.exclude) or "chunk"
        raise UsageError(
            f"chunk {chunk} is excluded for row {row}: the same {why}", remedy="Pin a chunk of another document."
        )
    metric = view.snapshot.existing(SpaceEntry, space).metric
    block = Block(ids, view.vectors(space, ids))
    _, distances = exact_topk(view.vectors(space, rows, queries), [block], 1, metric)
    return Edit(row, PIN, chunk, float(distances[0, 0]))
