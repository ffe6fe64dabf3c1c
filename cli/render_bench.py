"""A recall report as text for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .output import format_count, render_table

if TYPE_CHECKING:
    from retrodb.bench.recall import RecallReport


def recall_report(report: RecallReport) -> str:
    """What was measured, recall by number of lists, and the timed points."""
    head = (
        f"{report.factory}, lists {format_count(report.num_lists)}, vectors {format_count(report.num_vectors)}"
        f" of {report.index_bytes_per_vector:.0f} + {report.stored_bytes_per_vector:.0f} bytes;"
        f" {format_count(report.num_queries)} queries of {format_count(report.num_query_documents)} documents: {report.queries}"
    )
    curve = [
        {
            "lists": p.nprobe,
            "vectors scanned": round(p.scanned),
            "recall": p.recall.mean,
            "95% from": p.recall.low,
            "to": p.recall.high,
        }
        for p in report.curve
        if p.nprobe & (p.nprobe - 1) == 0 or p is report.curve[-1]
    ]
    points = [
        {
            "lists": p.nprobe,
            "recall": p.recall.mean,
            "queries/s": round(p.warm_queries_per_s),
            "cold": round(p.cold_queries_per_s),
            "p50 ms": 1000 * p.warm_latency.p50_s,
            "p95 ms": 1000 * p.warm_latency.p95_s,
            "p99 ms": 1000 * p.warm_latency.p99_s,
            "cold p50 ms": 1000 * p.cold_latency.p50_s,
            "cold p99 ms": 1000 * p.cold_latency.p99_s,
        }
        for p in report.points
    ]
    gemm = (
        f"matrix product before and after: {report.gemm_before_gflops:.0f} and {report.gemm_after_gflops:.0f} GFLOP/s"
    )
    lines = [
        head,
        "",
        f"recall@{report.k} of the lists, if compared exactly",
        render_table(curve),
        "",
        "complete search",
    ]
    lines += [render_table(points), gemm]
    if report.stored_nprobe is not None:
        lines.append(f"stored: {format_count(report.stored_nprobe)} lists for recall {report.stored_target:g}")
    return "\n".join(lines)
