"""Pins: names of snapshots, such as that of a release or of a training run. A snapshot with a name does not expire.

A name stands wherever the number of a snapshot does, so it is no number itself, and means the same snapshot until somebody moves
it on purpose.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from retrodb.errors import UsageError
from retrodb.format.entries import PinEntry
from retrodb.stages.context import Context
from retrodb.stages.transaction import Transaction
from retrodb.store import conflict_keys
from retrodb.store.snapshots import read_as_of, unknown_pin
from retrodb.view.view import View

STAGE_VERSION = 1
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True)
class PinResult:
    """A pin that was set or removed."""

    snapshot: int  # the newest one now
    name: str
    pinned_snapshot: int | None  # that the pin keeps now; None for none
    previous_snapshot: int | None  # that it kept before
    dry_run: bool = False


@dataclass(frozen=True)
class PinPlan:
    """A pin to set or to remove."""

    view: View
    name: str
    snapshot: int | None  # to keep; None removes the pin

    @property
    def result(self) -> PinResult:
        """The result of a dry run."""
        entry = self.view.snapshot.entry(PinEntry, self.name)
        previous = None if entry is None else entry.snapshot
        return PinResult(self.view.snapshot.number, self.name, self.snapshot, previous, dry_run=True)


@dataclass(frozen=True)
class _PinRun:
    """Identity of a run."""

    version: int
    name: str
    snapshot: int | None
    base: int  # the newest snapshot


def run_pin(
    context: Context, at: int | str | None, name: str, *, move: bool = False, dry_run: bool = False
) -> PinResult:
    """Give a snapshot a name, which keeps it from expiring.

    Args:
        at: number of the snapshot, or the name of another pin; None is the newest snapshot.
        move: take the name from the snapshot that has it.

    Raises:
        UsageError: the name is invalid or another snapshot's, or the snapshot does not exist or expired.
    """
    plan = plan_pin(context, at, name, move=move)
    return plan.result if dry_run else execute_pin(context, plan)


def run_unpin(context: Context, name: str, *, dry_run: bool = False) -> PinResult:
    """Remove a pin.

    Raises:
        UsageError: there is no pin of this name.
    """
    plan = plan_unpin(context, name)
    return plan.result if dry_run else execute_pin(context, plan)


def plan_pin(context: Context, at: int | str | None, name: str, *, move: bool = False) -> PinPlan:
    """Plan to set or move a pin; arguments and errors are those of `run_pin`."""
    if not _NAME.fullmatch(name) or name.isdecimal():
        raise UsageError(
            f"invalid name of a pin: '{name}'",
            remedy="Use up to 100 letters, digits, '.', '_' and '-', and not only digits, such as release-1.",
        )
    view = context.view()
    snapshot = read_as_of(context.storage, view.snapshot.number if at is None else at)
    entry = view.snapshot.entry(PinEntry, name)
    if entry is not None and entry.snapshot != snapshot.number and not move:
        raise UsageError(
            f"'{name}' is the name of snapshot {entry.snapshot}",
            remedy="Choose another name, or add '--move' to give it to another snapshot.",
        )
    return PinPlan(view, name, snapshot.number)


def plan_unpin(context: Context, name: str) -> PinPlan:
    """Plan to remove a pin.

    Raises:
        UsageError: there is no pin of this name.
    """
    view = context.view()
    if view.snapshot.entry(PinEntry, name) is None:
        raise unknown_pin(view.storage, view.snapshot, name)
    return PinPlan(view, name, None)


def execute_pin(context: Context, plan: PinPlan) -> PinResult:
    """Set or remove a pin, unless that was done before.

    Raises:
        ConflictError: another command changed the same pin.
    """
    result = replace(plan.result, dry_run=False)
    if result.pinned_snapshot == result.previous_snapshot:
        return result
    run_plan = _PinRun(STAGE_VERSION, plan.name, plan.snapshot, plan.view.snapshot.number)
    transaction = Transaction.open(
        context,
        plan.view,
        "unpin" if plan.snapshot is None else "pin",
        conflict_keys.pin(plan.name),
        plan=run_plan,
        arguments={"name": plan.name, "snapshot": plan.snapshot},
        run_command="pin",
    )
    if plan.snapshot is None:
        transaction.remove_entry(PinEntry, plan.name)
    else:
        transaction.set_entry(plan.name, PinEntry(plan.snapshot))
    return replace(result, snapshot=transaction.commit().number)
