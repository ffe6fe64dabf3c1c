"""The plan, the result and the proof of a purge as text for people."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from .output import format_count, format_size, render_table

if TYPE_CHECKING:
    from retrodb.maintain.purge.command import PurgeResult
    from retrodb.maintain.purge.proof import Proof


_REMEDIES = {
    "testsets": "items that quote the documents. Add '--include-testsets' to take them out.",
    "quarantine": "damaged files that a repair moved here. Delete them if nobody needs them.",
    "tmp": "files of a command that was killed. Delete them when no command is running.",
}
"""What to do about remaining traces, by their folder."""


def purge_plan(result: PurgeResult) -> str:
    """What a purge would delete."""
    return f"would purge {_summary(result, is_plan=True)}"


def purge_result(result: PurgeResult) -> str:
    """What was deleted, and the proof."""
    lines = [
        f"purged {_summary(result)}",
        f"deleted {format_count(result.deleted_files)} files, {format_size(result.deleted_bytes)}",
    ]
    return "\n".join([*lines, *(_proof(result.proof) if result.proof is not None else ())])


def _summary(result: PurgeResult, *, is_plan: bool = False) -> str:
    lines = [f"{format_count(result.documents)} documents, {format_count(result.chunks)} chunks"]
    if result.unknown:
        lines.append(f"unknown documents: {', '.join(result.unknown)}")
    if result.expired:
        lines.append(f"{'would expire' if is_plan else 'expired'} snapshots: {', '.join(map(str, result.expired))}")
    if result.broken_pins:
        lines.append(f"{'would remove' if is_plan else 'removed'} pins: {', '.join(result.broken_pins)}")
    for export in result.exports:
        lines.append(
            f"{export.path}: the export of snapshot {export.snapshot} contains the documents. Run '{export.remedy}'"
        )
    return "\n".join(lines)


def _proof(proof: Proof) -> Iterator[str]:
    yield f"proof: {format_count(proof.files)} files, {format_size(proof.size_bytes)} decoded and searched"
    rows = [
        {"trace": kind, "searched for": count, "compared with": proof.looked_through.get(kind, 0)}
        for kind, count in proof.looked_for.items()
    ]
    yield render_table(rows)
    if proof.shared_documents:
        names = ", ".join(f"{document.source}/{document.doc_id} ({document.shingles})" for document in proof.shared)
        yield f"{format_count(proof.shared_documents)} live documents contain some of the same words, and keep them: {names}"
    for trace in proof.left:
        yield f"{click.style(trace.path, fg='red')}: {trace.what}, {trace.place} ({format_count(trace.count)})"
    folders = {trace.path.partition("/")[0] for trace in proof.left}
    yield from (f"{folder}/: {remedy}" for folder, remedy in _REMEDIES.items() if folder in folders)
    yield f"{format_count(len(proof.left))} trace{'' if len(proof.left) == 1 else 's'} left"
