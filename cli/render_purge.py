"""A purge as text for people: what it would do, and the proof of what it did."""

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
    "quarantine": "damaged bytes that a repair put aside. Delete the files, unless somebody is to mend them.",
    "tmp": "left behind by a command that was killed. Delete the files when no command is running.",
}
"""What to do about what is left, by the folder that it lies in."""


def purge_plan(result: PurgeResult) -> str:
    """What a purge would take with it."""
    return "\n".join(["would purge " + line if not at else line for at, line in enumerate(_lines(result))])


def purge_result(result: PurgeResult) -> str:
    """What went, and the proof."""
    lines = ["purged " + line if not at else line for at, line in enumerate(_lines(result))]
    lines.append(f"deleted {format_count(result.deleted_files)} files, {format_size(result.deleted_bytes)}")
    return "\n".join([*lines, *(_proof(result.proof) if result.proof is not None else ())])


def _lines(result: PurgeResult) -> Iterator[str]:
    yield f"{format_count(result.documents)} documents, {format_count(result.chunks)} chunks"
    if result.unknown:
        yield f"unknown here: {', '.join(result.unknown)}"
    if result.expired:
        yield f"snapshots that can be read no more: {', '.join(map(str, result.expired))}"
    if result.broken_pins:
        yield f"pins that are broken: {', '.join(result.broken_pins)}"
    for export in result.exports:
        yield f"{export.path} was exported with them from snapshot {export.snapshot}: run '{export.remedy}'"


def _proof(proof: Proof) -> Iterator[str]:
    yield f"proof: {format_count(proof.files)} files, {format_size(proof.size_bytes)} decoded and searched"
    rows = [
        {"trace": kind, "looked for": count, "compared with": proof.looked_through.get(kind, 0)}
        for kind, count in proof.looked_for.items()
    ]
    yield render_table(rows)
    if proof.shared_documents:
        names = ", ".join(f"{each.source}/{each.doc_id} ({each.shingles})" for each in proof.shared)
        yield f"the same words stand in {format_count(proof.shared_documents)} live documents, and stay there: {names}"
    for each in proof.left:
        yield f"{click.style(each.path, fg='red')}: {each.what}, {each.place} ({format_count(each.count)})"
    folders = {each.path.partition("/")[0] for each in proof.left}
    yield from (f"{folder}/: {remedy}" for folder, remedy in _REMEDIES.items() if folder in folders)
    yield f"{format_count(len(proof.left))} left" if proof.left else "0 left"
