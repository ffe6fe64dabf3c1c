"""The result of a copy as text for people."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from .output import format_count, format_size

if TYPE_CHECKING:
    from retrodb.maintain.copy.command import CopyResult


def copy_result(result: CopyResult) -> str:
    """What was copied, and which files of the destination belong to other snapshots."""
    return "\n".join(_lines(result))


def _lines(result: CopyResult) -> Iterator[str]:
    verb = "would copy" if result.dry_run else "copied"
    replaced = f", {_files(result.num_replaced_files)} replaced" if result.num_replaced_files else ""
    copied = f"{verb} {_files(result.num_files)}, {format_size(result.size_bytes)}{replaced}"
    yield f"{copied}; {format_count(result.num_present_files)} there already"
    numbers = ", ".join(map(str, result.new_snapshots))
    if result.new_snapshots:
        snapshots = "snapshot" if len(result.new_snapshots) == 1 else "snapshots"
        yield f"{'would be ' if result.dry_run else ''}new in {result.destination}: {snapshots} {numbers}"
    else:
        yield f"{result.destination} has snapshot {result.snapshot}"
    if result.pins:
        yield f"names: {', '.join(result.pins)}"
    if result.num_other_files:
        yield (
            f"of other snapshots there: {_files(result.num_other_files)}, {format_size(result.other_bytes)}. "
            "'retrodb gc' deletes what no snapshot needs."
        )
    if result.purges and result.num_other_files:
        yield (
            "They may contain documents that the source has purged. To delete them, run 'retrodb gc --keep-snapshots 1 "
            "--grace 1s' on the copy, and again some seconds later."
        )


def _files(count: int) -> str:
    return f"{format_count(count)} file{'' if count == 1 else 's'}"
