"""The results of filter, undelete and check --repair as text for people."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from .output import document_name, format_count, style

if TYPE_CHECKING:
    from retrodb.maintain.check.repair import DatabaseRepairResult
    from retrodb.stages.deletion.filter import FilteredDocument, FilterResult
    from retrodb.stages.deletion.undelete import UndeleteResult


def filter_result(result: FilterResult) -> str:
    """How much was deleted, and from which sources. A dry run also shows some documents with the words that match."""
    verb = "would delete" if result.dry_run else "deleted"
    lines = [f"{result.reason}: {verb} {_documents(result.num_documents, result.num_chunks)}"]
    lines += [f"  {source}: {format_count(count)}" for source, count in result.num_documents_by_source.items()]
    lines += [line for document in result.sample for line in ("", *_document(document))]
    return "\n".join(lines)


def undelete_result(result: UndeleteResult) -> str:
    """How much came back, and what did not."""
    verb = "would be revoked" if result.dry_run else "revoked"
    lines = [f"{result.reason}: {verb} for {_documents(result.num_documents, result.num_chunks)}"]
    num_held = result.num_documents - result.num_live_documents
    lines += [f"  {format_count(num_held)} of them stay deleted for another reason"] if num_held else []
    if result.num_compacted_documents:
        count = format_count(result.num_compacted_documents)
        lines.append(f"  {count} documents were already removed by a compaction. Ingest their files again.")
    return "\n".join(lines)


def database_repair_result(result: DatabaseRepairResult) -> str:
    """What happened to every damaged file, the lost documents, and the commands to run next."""
    plan, will = result.plan, "will be " if result.dry_run else ""
    lines = [f"{path}: {will}rebuilt" for path in plan.rebuilt]
    is_refused = bool(plan.lost) and not result.is_loss_accepted
    if not is_refused:
        lines += [f"{path}: {will}removed; a command computes it again" for path in plan.recomputed]
    for path in (*plan.recomputed, *plan.lost) if is_refused else ():
        lines.append(f"{style(path, fg='red')}: not changed")
    lines += [f"{style(path, fg='red')}: {will}lost" for path in plan.lost if not is_refused]
    lines += [f"  lost document: {name}" for name in plan.lost_documents]
    if plan.num_more_lost_documents:
        lines.append(f"  more lost documents: {format_count(plan.num_more_lost_documents)}")
    if plan.num_unnamed_lost_documents:
        lines.append(f"  lost documents with unknown ids: {format_count(plan.num_unnamed_lost_documents)}")
    lines += [f"{style(file.path, fg='red')}: {file.fault}. {file.remedy}" for file in plan.unrepairable]
    lines += [f"ran: retrodb {command}" for command in result.commands_run]
    lines += [f"to run: retrodb {command}" for command in result.commands_to_run]
    if is_refused:
        lines.append(
            "The lost files cannot be rebuilt. Restore a backup, or use --accept-loss to delete their documents."
        )
    return "\n".join(lines) or "no damage found"


def _document(document: FilteredDocument) -> list[str]:
    text = " ".join(document.excerpt.split())
    if document.matched:
        pieces = "|".join(re.escape(piece) for piece in sorted(document.matched, key=len, reverse=True))
        text = re.sub(pieces, lambda match: style(match[0], fg="yellow"), text)
    return [style(document_name(document.source, document.doc_id), bold=True), f"  {text}"]


def _documents(documents: int, chunks: int) -> str:
    def counted(count: int, noun: str) -> str:
        return f"{format_count(count)} {noun}{'' if count == 1 else 's'}"

    return f"{counted(documents, 'document')} ({counted(chunks, 'chunk')})"
