"""The state of a database as a Prometheus text file, for node_exporter's textfile collector and for alerts on stale data.

Metric names are part of the interface: dashboards and alerts depend on them.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from retrodb.engine.worker_tally import WorkerTally
from retrodb.maintain.stats import DriftStats, Stats, read_stats
from retrodb.stages.index.operating_point import stored_point
from retrodb.store.storage import translate_os_error
from retrodb.view.view import View

_LAST_SUCCESS = "retrodb_update_last_success_timestamp_seconds"


@dataclass(frozen=True)
class UpdateMetrics:
    """What an update reports about itself."""

    finished_at: float  # seconds since 1970
    elapsed_s: float
    is_success: bool
    rejected: Mapping[str, int]  # source -> records
    work: Mapping[tuple[str, str], WorkerTally]  # stage and machine -> what workers did


def write_metrics(path: Path, view: View, update: UpdateMetrics) -> None:
    """Write the metrics file and publish it by a rename, so that a scraper never reads half of one.

    Raises:
        RetroDBError: when the file cannot be written.
    """
    last_success = update.finished_at if update.is_success else _last_success(path)
    registry = CollectorRegistry()
    registry.register(_DatabaseCollector(view, update, last_success))
    content = generate_latest(registry)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # The temporary name does not end in .prom, because node_exporter would read it.
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            file.write(content)
        os.chmod(file.name, 0o644)  # the scraper is another user
        os.replace(file.name, path)
    except OSError as error:
        raise translate_os_error(error, str(path)) from error


def _last_success(path: Path) -> float | None:
    """The time of the last success that the previous file reports; None when it reports none or cannot be read."""
    try:
        families = text_string_to_metric_families(path.read_text(encoding="utf-8", errors="replace"))
        return next(
            (float(sample.value) for f in families for sample in f.samples if sample.name == _LAST_SUCCESS), None
        )
    except (OSError, ValueError):
        return None


class _DatabaseCollector(Collector):
    """The metrics of one snapshot and of the update that ended with it."""

    def __init__(self, view: View, update: UpdateMetrics, last_success: float | None) -> None:
        self._view, self._update, self._last_success = view, update, last_success
        self._stats = read_stats(view)

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Every metric that has a sample."""
        families = [*self._update_metrics(), *self._database_metrics(), *self._drift_metrics()]
        return (family for family in families if family.samples)

    def _update_metrics(self) -> Iterator[GaugeMetricFamily]:
        update = self._update
        success = [] if self._last_success is None else [self._last_success]
        yield self._gauge(_LAST_SUCCESS, "Time of the last successful update.", success)
        name = "retrodb_update_last_run_timestamp_seconds"
        yield self._gauge(name, "Time at which the last update ended.", [update.finished_at])
        name = "retrodb_update_last_duration_seconds"
        yield self._gauge(name, "Duration of the last update.", [update.elapsed_s])
        name = "retrodb_update_success"
        yield self._gauge(name, "Whether the last update succeeded: 1 or 0.", [float(update.is_success)])
        name, rejected = "retrodb_update_rejected_records", update.rejected.items()
        yield self._gauge_by("source", name, "Records that the last update rejected.", rejected)
        labels = ["database", "stage", "machine"]
        tasks = GaugeMetricFamily("retrodb_update_worker_tasks", "Tasks that workers of a machine ran.", labels=labels)
        help_text = "Time that workers of a machine spent on tasks."
        seconds = GaugeMetricFamily("retrodb_update_worker_seconds", help_text, labels=labels)
        for stage_and_machine, tally in update.work.items():
            tasks.add_metric([self._stats.database, *stage_and_machine], tally.num_tasks)
            seconds.add_metric([self._stats.database, *stage_and_machine], tally.elapsed_s)
        yield from (tasks, seconds)

    def _database_metrics(self) -> Iterator[GaugeMetricFamily]:
        stats: Stats = self._stats
        yield self._gauge("retrodb_snapshot", "Number of the newest snapshot.", [float(stats.snapshot)])
        documents = ((source.source, source.num_live_documents) for source in stats.sources)
        yield self._gauge_by("source", "retrodb_documents_live", "Live documents.", documents)
        chunks = ((source.source, source.num_live_chunks) for source in stats.sources)
        yield self._gauge_by("source", "retrodb_chunks_live", "Live chunks.", chunks)
        help_text = "Chunks deleted for each reason; a chunk with two reasons counts in both."
        deleted = stats.num_deleted_chunks_by_reason.items()
        yield self._gauge_by("reason", "retrodb_chunks_deleted", help_text, deleted)
        sizes = ((files.kind, files.size_bytes) for files in stats.files)
        yield self._gauge_by("kind", "retrodb_size_bytes", "Size of the live files.", sizes)
        help_text = "Fraction of the chunks to be embedded that have a vector."
        coverage = ((space.space, space.coverage) for space in stats.spaces)
        yield self._gauge_by("space", "retrodb_vector_coverage", help_text, coverage)
        yield self._gauge_by(
            "space", "retrodb_index_recall", "Recall at the stored operating point.", self._stored_recalls()
        )

    def _stored_recalls(self) -> Iterator[tuple[str, float]]:
        for space in self._stats.spaces:
            point = stored_point(self._view, space.space, None)
            if point is not None:
                yield space.space, point.recall

    def _drift_metrics(self) -> Iterator[GaugeMetricFamily]:
        """The drift of every space's index since its codebook was trained."""
        for name, help_text, read in _DRIFT_METRICS:
            values = ((drift.space, read(drift)) for drift in self._stats.drift)
            known = ((space, float(value)) for space, value in values if value is not None)
            yield self._gauge_by("space", f"retrodb_drift_{name}", help_text, known)

    def _gauge(self, name: str, help_text: str, values: Iterable[float]) -> GaugeMetricFamily:
        family = GaugeMetricFamily(name, help_text, labels=["database"])
        for value in values:
            family.add_metric([self._stats.database], value)
        return family

    def _gauge_by(
        self, label: str, name: str, help_text: str, values: Iterable[tuple[str, float]]
    ) -> GaugeMetricFamily:
        """A metric with one sample for each value of a label."""
        family = GaugeMetricFamily(name, help_text, labels=["database", label])
        for label_value, value in values:
            family.add_metric([self._stats.database, label_value], value)
        return family


# Suffix of the metric's name, help, and the value, which is None when it is not known.
_DRIFT_METRICS: tuple[tuple[str, str, Callable[[DriftStats], float | None]], ...] = (
    ("added", "Vectors added since the codebook was trained.", lambda drift: drift.num_added_vectors),
    ("residual", "Mean squared distance of added vectors to the centre of their list.", lambda drift: drift.residual),
    ("residual_at_training", "The residual when the codebook was trained.", lambda drift: drift.residual_at_training),
    ("imbalance", "Imbalance of the inverted lists; 1 when all are equal.", lambda drift: drift.imbalance),
    (
        "imbalance_at_training",
        "The imbalance when the codebook was trained.",
        lambda drift: drift.imbalance_at_training,
    ),
    ("canary_recall", "Recall of a small fixed sample of chunks.", lambda drift: drift.canary_recall),
    (
        "canary_recall_at_training",
        "The canary recall when the codebook was trained.",
        lambda drift: drift.canary_recall_at_training,
    ),
    ("retrain", "Whether a new codebook is worth training: 1 or 0.", lambda drift: float(bool(drift.retrain))),
)
