"""The exact neighbours of held-out queries, and the sizes of all lists, found by tasks that write nothing into the database."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from retrodb.ann.exclusion import Exclusion
from retrodb.ann.truth import Truth
from retrodb.bench.heldout import HeldOutQueries
from retrodb.engine.run import Run, passing_run
from retrodb.format.arrays import Int64Array
from retrodb.stages.context import Context
from retrodb.stages.index.drift_task import sizes_of_lists
from retrodb.stages.index.live_parts import parts_of
from retrodb.stages.neighbours.truth_tasks import ScannedSide, find_truth, publish_queries, stored_truth
from retrodb.stages.planned_view import PlannedSnapshot
from retrodb.store.scratch import ScratchStorage
from retrodb.store.verify import VerifiedFiles
from retrodb.view.view import View


def true_neighbours(
    context: Context, view: View, space: str, held_out: HeldOutQueries, k: int, num_lists: int
) -> tuple[Truth, Int64Array]:
    """The k nearest chunks of every query, its hidden documents left out, and (L,) the vectors in each list."""
    with _temporary_run(context) as run:
        exclusion = Exclusion.of(len(held_out.vectors))
        queries = publish_queries(run.storage, run.id, "held-out", held_out.vectors, exclusion, held_out.masked)
        side = ScannedSide(PlannedSnapshot.of(view), space)
        truth = stored_truth(VerifiedFiles(run.storage), find_truth(context, run, view, side, queries, k))
        return truth, sizes_of_lists(context, run, parts_of(view, space), num_lists)


@contextmanager
def _temporary_run(context: Context) -> Iterator[Run]:
    """A run in a temporary folder. So a database that cannot be written is measured too."""
    with tempfile.TemporaryDirectory(prefix="retrodb-bench-") as folder:
        storage = ScratchStorage.create(Path(folder), context.storage)
        with passing_run(storage, "bench recall", {"folder": folder}, context.clock) as run:
            yield run
