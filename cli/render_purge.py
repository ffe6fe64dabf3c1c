"""The plan, the result and the proof of a purge as text for people."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from .output import document_name, format_count, format_size, render_table, style

if TYPE_CHECKING:
    from retrodb.maintain.purge.plan import PurgeResult
    from retrodb.maintain.purge.proof import Proof


_REMEDIES = {
    "testsets": "items that quote the documents. Add '--include-testsets' to remove these items.",
    "queries": "a query set that contains text or ids of the documents. Register it again from files without them"
    " ('retrodb queries add' replaces a set of the same name), then run the same purge again.",
    "quarantine": "damaged files that a repair moved here. Delete them if nobody needs them.",
    "tmp": "files of a command that was killed. Delete them when no command is running.",
}
"""What to do about remaining traces, by their folder."""

_OLD_VERSIONS = (
    "The bucket keeps old versions of objects, which may contain the documents. Only its owner can delete them, such as with a"
    " lifecycle rule for noncurrent versions."
)


def purge_plan(result: PurgeResult) -> str:
    """What a purge would delete."""
    return f"would purge {_summary(result, is_plan=True)}"


def purge_result(result: PurgeResult) -> str:
    """What was deleted, and the proof."""
    lines = [
        f"purged {_summary(result)}",
        f"deleted {_count(result.num_deleted_files, 'file')}, {format_size(result.deleted_bytes)}",
    ]
    lines += _proof(result.proof) if result.proof is not None else ()
    return "\n".join([*lines, _OLD_VERSIONS] if result.keeps_versions else lines)


def _summary(result: PurgeResult, *, is_plan: bool = False) -> str:
    lines = [f"{_count(result.num_documents, 'document')}, {_count(result.num_chunks, 'chunk')}"]
    if result.num_packed_sequences:
        lines.append(f"packed sequences that contain them: {format_count(result.num_packed_sequences)}")
    if result.expired_snapshots:
        lines.append(
            f"{'would expire' if is_plan else 'expired'} snapshots: {', '.join(map(str, result.expired_snapshots))}"
        )
    if result.broken_pins:
        lines.append(f"{'would remove' if is_plan else 'removed'} pins: {', '.join(result.broken_pins)}")
    if result.cancelled_runs:
        runs = ", ".join(run[:12] for run in result.cancelled_runs)
        lines.append(f"{'would cancel' if is_plan else 'cancelled'} runs that have not committed: {runs}")
    for export in result.stale_exports:
        lines.append(
            f"{export.path}: the export of snapshot {export.snapshot} contains the documents. Run '{export.remedy}'"
        )
    return "\n".join(lines)


def _proof(proof: Proof) -> Iterator[str]:
    yield f"proof: {format_count(proof.num_files)} files, {format_size(proof.size_bytes)} decoded and searched"
    rows = [
        {"trace": kind, "searched for": count, "compared with": proof.num_compared.get(kind, 0)}
        for kind, count in proof.num_traces.items()
    ]
    yield render_table(rows)
    if proof.num_sharing_documents:
        names = ", ".join(
            f"{document_name(document.source, document.doc_id)} ({document.num_shingles})"
            for document in proof.sharing_documents
        )
        count = format_count(proof.num_sharing_documents)
        yield f"{count} live documents contain some of the same words, and keep them: {names}"
    for trace in proof.remaining:
        yield f"{style(trace.path, fg='red')}: {trace.kind}, {trace.location} ({format_count(trace.num_values)})"
    folders = {trace.path.partition("/")[0] for trace in proof.remaining}
    yield from (f"{folder}/: {remedy}" for folder, remedy in _REMEDIES.items() if folder in folders)
    yield f"{_count(len(proof.remaining), 'trace')} left"


def _count(count: int, noun: str) -> str:
    return f"{format_count(count)} {noun}{'' if count == 1 else 's'}"
