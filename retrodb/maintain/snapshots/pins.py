"""Pins: names that keep a snapshot from expiring, such as the name of a training run that reads it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from retrodb.errors import UsageError
from retrodb.format.entries import PinEntry
from retrodb.stages.context import Context
from retrodb.stages.transaction import Transaction
from retrodb.store import conflict_keys
from retrodb.store.snapshots import read_as_of
from retrodb.view.view import View

STAGE_VERSION = 1


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


def run_pin(context: Context, number: int | None, name: str, *, dry_run: bool = False) -> PinResult:
    """Keep a snapshot from expiring. A pin that keeps another snapshot is moved.

    Args:
        number: of the snapshot; None is the newest.

    Raises:
        UsageError: the name is invalid, or the snapshot does not exist or expired.
    """
    plan = plan_pin(context, number, name)
    return plan.result if dry_run else execute_pin(context, plan)


def run_unpin(context: Context, name: str, *, dry_run: bool = False) -> PinResult:
    """Remove a pin.

    Raises:
        UsageError: there is no pin of this name.
    """
    plan = plan_unpin(context, name)
    return plan.result if dry_run else execute_pin(context, plan)


def plan_pin(context: Context, number: int | None, name: str) -> PinPlan:
    """Plan to set or move a pin; arguments and errors are those of `run_pin`."""
    if not name or "/" in name or name != name.strip():
        raise UsageError(
            f"invalid name of a pin: '{name}'", remedy="Give a short --name without '/', such as training-7."
        )
    view = context.view()
    snapshot = read_as_of(context.storage, view.snapshot.number if number is None else number)
    return PinPlan(view, name, snapshot.number)


def plan_unpin(context: Context, name: str) -> PinPlan:
    """Plan to remove a pin.

    Raises:
        UsageError: there is no pin of this name.
    """
    view = context.view()
    if view.snapshot.entry(PinEntry, name) is None:
        names = ", ".join(view.snapshot.names(PinEntry)) or "none"
        raise UsageError(f"no pin '{name}'", remedy=f"There are: {names}.")
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
