"""Chunks of a database that are deleted one by one, whatever their documents are."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
from made_up import CLOCK

from retrodb.database import Database
from retrodb.format.arrays import Int64Array
from retrodb.format.kinds import path_of
from retrodb.store import conflict_keys
from retrodb.store.commit import Change, commit
from retrodb.store.digest import identity
from retrodb.store.publish import publish
from retrodb.store.snapshots import read_head
from retrodb.view.tombstones import tombstone, write_tombstones


def mark(database: Database, ids: Sequence[int] | Int64Array, *, active: bool = True, reason: str = "gone") -> None:
    """Delete chunks for a reason, or take the reason away."""
    storage = database._context.storage
    head = read_head(storage)
    task = identity("test", head.number)
    dead = [tombstone(0, head.next_chunk, reason, np.asarray(ids), active=active)]
    file = publish(storage, "tombstones", path_of("tombstones", task=task), partial(write_tombstones, tombstones=dead))
    commit(storage, head, Change(task, "filter", {}, CLOCK, conflict_keys.filtering(), files=[file]))
