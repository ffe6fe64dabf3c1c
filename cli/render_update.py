"""Updates, their plans and schedules as text for people."""

from __future__ import annotations

import shlex
import textwrap
from typing import TYPE_CHECKING

from .output import format_count, format_duration, format_size, render_table, style

if TYPE_CHECKING:
    from retrodb.maintain.update.build import BuildPlan, BuildResult
    from retrodb.maintain.update.command import UpdateResult, UpdateStep
    from retrodb.maintain.update.estimate import StageEstimate, UpdatePlan
    from retrodb.maintain.update.sample import Preview
    from retrodb.maintain.update.schedule import ScheduleFile

_COLOURS = {"done": "green", "failed": "red", "left out": "yellow"}


def update_step(step: UpdateStep) -> str:
    """One line with the stage, its outcome, its time and its counts; its notes and its error below."""
    counts = ", ".join(f"{name.replace('_', ' ')} {format_count(count)}" for name, count in step.counts.items())
    outcome = style(f"{step.outcome:<11}", fg=_COLOURS.get(step.outcome))
    by = f" by {format_count(len(step.workers))} worker{'s' * (len(step.workers) > 1)}" if step.workers else ""
    line = f"{step.stage:<15} {outcome} {format_duration(step.elapsed_s):>12}  {step.name}{by}"
    below = [*step.notes, *([step.error] if step.error else [])]
    return "\n".join([f"{line}{': ' + counts if counts else ''}".rstrip(), *(f"  {text}" for text in below)])


def update_result(result: UpdateResult) -> str:
    """A summary, and the notes."""
    summary = f"{result.database}: {result.outcome} in {format_duration(result.elapsed_s)}, snapshot {result.snapshot}"
    return "\n".join([summary, *result.notes])


def update_plan(plan: UpdatePlan) -> str:
    """What is new, what each stage would do, and a summary."""
    new = f"{format_count(plan.num_documents)} new or changed documents, about {format_count(plan.num_chunks)} chunks"
    deleted = f"{format_count(plan.num_removed_documents)} documents or old versions would be deleted"
    return f"{new}; {deleted}\n\n{_estimates(plan.stages)}"


def build_plan(plan: BuildPlan) -> str:
    """Some parsed documents, and what each stage would do."""
    size = f"{format_count(plan.num_files)} file{'' if plan.num_files == 1 else 's'}, {format_size(plan.size_bytes)}"
    about = "" if plan.is_exact else "about "
    sums = f"{size}: {about}{format_count(plan.num_documents)} documents, {about}{format_count(plan.num_chunks)} chunks"
    return "\n\n".join([*map(_preview, plan.previews), sums, _estimates(plan.stages)])


def build_result(result: BuildResult) -> str:
    """A summary, and commands to try."""
    if result.outcome == "failed":
        return "\n".join(
            [
                "",
                f"{result.database}: the build ended with an error after {format_duration(result.elapsed_s)}."
                f" It has {format_count(result.num_documents)} documents.",
                "Correct the cause and run the same command again."
                if result.num_documents
                else "Nothing was added, so the command can be run again with other options.",
            ]
        )
    what = f"{format_count(result.num_documents)} documents, {format_count(result.num_chunks)} chunks,"
    return "\n".join(
        [
            "",
            f"{result.database}: {what} {format_count(result.num_tokens)} tokens, {format_size(result.size_bytes)}"
            f" in {format_duration(result.elapsed_s)}",
            f"{result.recipe} is its recipe. Next steps:",
            f'  retrodb search {shlex.quote(result.database)} "a few words"',
            f"  retrodb update {shlex.quote(result.database)}",
        ]
    )


def schedule_file(file: ScheduleFile) -> str:
    """The file below its name."""
    return f"# {file.name}\n{file.text.rstrip()}"


def _preview(preview: Preview) -> str:
    taken = f"text from '{preview.text_field}'"
    metadata = f", metadata {textwrap.shorten(preview.metadata, 120)}" if preview.metadata != "{}" else ""
    lines = [f"{style(preview.doc_id or '(no id)', bold=True)}  {taken}{metadata}"]
    lines += [f"  {textwrap.shorten(text, 200) or '-'}" for text in (preview.beginning, preview.value) if text]
    return "\n".join(lines)


def _estimates(stages: tuple[StageEstimate, ...]) -> str:
    rows = [
        {
            "stage": f"{stage.stage} {stage.name}".rstrip(),
            "documents": _count(stage.num_documents),
            "chunks": _count(stage.num_chunks),
            "disk": "-" if stage.size_bytes is None else format_size(stage.size_bytes),
            "time": stage.note
            or ("unknown" if stage.elapsed_s is None else f"about {format_duration(stage.elapsed_s)}"),
        }
        for stage in stages
    ]
    known = [stage.elapsed_s for stage in stages if stage.elapsed_s is not None]
    more = (
        " and the stages with unknown time" if len(known) < len([stage for stage in stages if not stage.note]) else ""
    )
    disk = sum(stage.size_bytes or 0 for stage in stages)
    if not rows:
        return "nothing to do"
    return (
        f"{render_table(rows)}\n\ntotal: about {format_duration(sum(known))}{more}, {format_size(disk)} of disk space"
    )


def _count(count: int | None) -> str:
    return "-" if count is None else format_count(count)
