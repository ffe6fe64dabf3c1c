"""Pins: names that keep a snapshot from expiring, such as that of a training run that reads it."""

from __future__ import annotations

from dataclasses import dataclass

from retrodb.engine.run import open_run
from retrodb.errors import UsageError
from retrodb.format.entries import PinEntry
from retrodb.stages.context import Context
from retrodb.store import conflict_keys
from retrodb.store.commit import Change, commit
from retrodb.store.snapshots import read_as_of
from retrodb.view.view import View

STAGE_VERSION = 1


@dataclass(frozen=True)
class PinResult:
    """A pin that was set or taken away."""

    snapshot: int  # that it made, or found things so already
    name: str
    pinned: int | None  # the snapshot that the name keeps now; None for none
    previous: int | None  # what it kept before
    dry_run: bool = False


def run_pin(context: Context, number: int | None, name: str, *, dry_run: bool = False) -> PinResult:
    """Keep a snapshot, the newest one unless a number is given; a name that kept another one moves.

    Raises:
        UsageError: for a name that cannot be meant, or a snapshot that is not there or expired.
    """
    if not name or "/" in name or name != name.strip():
        raise UsageError(f"'{name}' cannot name a pin", remedy="Give a short --name without '/', such as training-7.")
    view = context.view()
    chosen = read_as_of(context.storage, view.snapshot.number if number is None else number)
    return _set(context, view, name, chosen.number, dry_run)


def run_unpin(context: Context, name: str, *, dry_run: bool = False) -> PinResult:
    """Take a pin away.

    Raises:
        UsageError: when there is none of this name.
    """
    view = context.view()
    if view.snapshot.entry(PinEntry, name) is None:
        have = ", ".join(view.snapshot.names(PinEntry)) or "none"
        raise UsageError(f"no pin '{name}'", remedy=f"There are: {have}.")
    return _set(context, view, name, None, dry_run)


def _set(context: Context, view: View, name: str, number: int | None, dry_run: bool) -> PinResult:
    entry = view.snapshot.entry(PinEntry, name)
    previous = None if entry is None else int(entry.snapshot)
    result = PinResult(view.snapshot.number, name, number, previous, dry_run)
    if dry_run or number == previous:
        return result
    plan = {"version": STAGE_VERSION, "name": name, "snapshot": number, "base": view.snapshot.number}
    run = open_run(context.storage, "pin", plan, context.clock)
    change = Change(
        transaction=run.id,
        command="pin" if number is not None else "unpin",
        arguments={"name": name, "snapshot": number},
        clock=run.clock,
        conflict_keys=conflict_keys.pin(name),
        entries={f"pin/{name}": None if number is None else PinEntry(number)},
    )
    return PinResult(commit(context.storage, view.snapshot, change).number, name, number, previous)
