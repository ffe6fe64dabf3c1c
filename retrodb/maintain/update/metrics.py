"""How a database is, as Prometheus reads it: for node_exporter's textfile collector, and alerts on what goes stale.

The text format is that of https://prometheus.io/docs/instrumenting/exposition_formats/, version 0.0.4.
"""

from __future__ import annotations

import dataclasses
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from retrodb.maintain.stats import DriftStats, Stats, read_stats
from retrodb.stages.index.operating_point import stored_point
from retrodb.store.storage import translate_os_error
from retrodb.view.view import View

Samples = list[tuple[Mapping[str, str], float]]

_LAST_SUCCESS = "retrodb_update_last_success_timestamp_seconds"


@dataclass(frozen=True)
class UpdateMetrics:
    """What an update says of itself."""

    finished_at: float  # seconds since 1970
    elapsed_s: float
    is_success: bool
    rejected: Mapping[str, int]  # by source


def write_metrics(path: Path, view: View, update: UpdateMetrics) -> None:
    """Write the metrics file whole: a scraper never reads half of one.

    Raises:
        RetroDBError: when the file cannot be written.
    """
    last_success = update.finished_at if update.is_success else _last_success(path)
    text = "".join(_lines(view, update, last_success))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Not named *.prom, which the collector would read.
        with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            file.write(text)
        os.chmod(file.name, 0o644)  # the scraper is another user
        os.replace(file.name, path)
    except OSError as error:
        raise translate_os_error(error, str(path)) from error


def _last_success(path: Path) -> float | None:
    """The time of the last success as the earlier file has it."""
    try:
        found = re.search(rf"^{_LAST_SUCCESS}(?:{{.*}})? (\S+)$", path.read_text(errors="replace"), re.MULTILINE)
        return float(found[1]) if found else None
    except (OSError, ValueError):
        return None


def _lines(view: View, update: UpdateMetrics, last_success: float | None) -> Iterator[str]:
    stats = read_stats(view)
    own = {"database": stats.database}
    for name, (help_text, samples) in _metrics(view, stats, update, last_success).items():
        if samples:
            yield f"# HELP {name} {help_text}\n# TYPE {name} gauge\n"
        for labels, value in samples:
            shown = ",".join(f'{key}="{_escaped(text)}"' for key, text in {**own, **labels}.items())
            yield f"{name}{{{shown}}} {value!r}\n"


def _metrics(
    view: View, stats: Stats, update: UpdateMetrics, last_success: float | None
) -> dict[str, tuple[str, Samples]]:
    """Name -> what it is, and its samples."""
    return {
        _LAST_SUCCESS: ("When an update last succeeded.", [] if last_success is None else [({}, last_success)]),
        "retrodb_update_last_run_timestamp_seconds": ("When an update last ended.", [({}, update.finished_at)]),
        "retrodb_update_last_duration_seconds": ("How long it took.", [({}, update.elapsed_s)]),
        "retrodb_update_success": ("Whether it succeeded.", [({}, float(update.is_success))]),
        "retrodb_update_rejected_records": (
            "Records that it refused.",
            _labelled("source", update.rejected.items()),
        ),
        "retrodb_snapshot": ("Number of the newest snapshot.", [({}, float(stats.snapshot))]),
        "retrodb_documents_live": (
            "Live documents.",
            _labelled("source", ((s.source, s.live_documents) for s in stats.sources)),
        ),
        "retrodb_chunks_live": (
            "Live chunks.",
            _labelled("source", ((s.source, s.live_chunks) for s in stats.sources)),
        ),
        "retrodb_chunks_deleted": (
            "Chunks that a reason deletes; one with two reasons counts in both.",
            _labelled("reason", stats.deleted_chunks_by_reason.items()),
        ),
        "retrodb_size_bytes": (
            "Size of the live files.",
            _labelled("kind", ((f.kind, f.size_bytes) for f in stats.files)),
        ),
        "retrodb_vector_coverage": (
            "Share of the chunks that want a vector and have one.",
            _labelled("space", ((s.space, s.coverage) for s in stats.spaces)),
        ),
        "retrodb_index_recall": (
            "Recall at the stored operating point.",
            _labelled(
                "space",
                ((s.space, p.recall) for s in stats.spaces if (p := stored_point(view, s.space, None)) is not None),
            ),
        ),
        **_drift(stats.drift),
    }


def _drift(spaces: Iterable[DriftStats]) -> dict[str, tuple[str, Samples]]:
    """The figures of every space's drift, and whether a new codebook would pay."""
    found: dict[str, tuple[str, Samples]] = {}
    for space in spaces:
        for name, value in {**dataclasses.asdict(space), "retrain": float(bool(space.retrain))}.items():
            if isinstance(value, int | float):
                help_text = (
                    "Whether training anew pays." if name == "retrain" else f"Index drift: {name.replace('_', ' ')}."
                )
                found.setdefault(f"retrodb_drift_{name}", (help_text, []))[1].append(
                    ({"space": space.space}, float(value))
                )
    return found


def _labelled(label: str, values: Iterable[tuple[str, float]]) -> Samples:
    return [({label: name}, float(value)) for name, value in values]


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')
