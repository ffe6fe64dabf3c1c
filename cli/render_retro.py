"""Evaluations of a database and of models as text for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .output import format_count, render_table, style

if TYPE_CHECKING:
    from collections.abc import Mapping

    from retrodb.retro.evaluate import BitsPerByte
    from retrodb.retro.experiment import ValidateResult
    from retrodb.retro.run_leakage import LeakageResult
    from retrodb.retro.run_model import Fingerprints, RetroEvalResult, RetroGenerateResult

_EIGHTHS = (0, 1, 2, 4, 8)  # borders of the histogram, in eighths of a chunk


def leakage_result(result: LeakageResult) -> str:
    """The histogram of r(C) in a few classes, and a summary."""
    m, counts = result.chunk_tokens, result.chunks_by_ratio
    borders = [-(-m * eighth // 8) for eighth in _EIGHTHS]
    rows = []
    for start, stop in zip(borders, [*borders[1:-1], m, m + 1], strict=True):
        if start < stop:
            count = sum(counts[start:stop])
            below = f", below {stop / m:.1%}" if stop < m + 1 else ""
            rows.append(
                {"r(C)": f"from {start / m:.1%}{below}", "chunks": count, "fraction": count / max(1, result.num_chunks)}
            )
    left_out = result.num_chunks_not_looked_up
    return "\n".join(
        [
            f"{result.against} against space '{result.space}': {format_count(result.num_documents)} documents,"
            f" {format_count(result.num_chunks)} chunks of {m} tokens, {result.num_neighbours} neighbours each",
            render_table(rows),
            f"{result.fraction_at_eighth:.2%} of {format_count(result.num_chunks)} chunks share 12.5% of their tokens or more"
            " with a neighbour, in one run (r(C) >= 12.5%)",
            *(
                [f"{format_count(left_out)} chunks without a vector were not looked up, and are left out"]
                if left_out
                else []
            ),
        ]
    )


def estimates(column: str, values: Mapping[str, BitsPerByte]) -> str:
    """A table of numbers with their intervals."""
    return render_table(
        [{column: name, "bits per byte": it.value, "95% from": it.low, "to": it.high} for name, it in values.items()]
    )


def retro_eval_result(result: RetroEvalResult) -> str:
    """Bits per byte under every condition, and the gain of retrieval."""
    return "\n".join(
        [
            f"{result.checkpoint} on {result.data}: {format_count(result.num_documents)} documents,"
            f" {format_count(result.num_chunks)} chunks",
            _fingerprints(result.fingerprints),
            estimates("condition", result.bits_per_byte),
            estimates("gain over", result.gain),
        ]
    )


def retro_generate_result(result: RetroGenerateResult) -> str:
    """The text, and below it the retrieved chunks."""
    lines = [_fingerprints(result.fingerprints), "", style(result.prompt, dim=True) + result.text, ""]
    for chunk in result.retrieved:
        name = style(f"{chunk.doc_id}, chunk {chunk.chunk_id}", bold=True)
        lines += [f"after token {chunk.after_token}: {name}", f"  {' '.join(chunk.text.split())}"]
    return "\n".join(lines)


def _fingerprints(prints: Fingerprints) -> str:
    rows = [
        {"fingerprint": "tokenizer", "model": prints.model_tokenizer or "-", "data": prints.data_tokenizer or "-"},
        {"fingerprint": "encoder", "model": prints.model_encoder or "-", "data": prints.data_encoder or "-"},
    ]
    return render_table(rows)


def validate_result(result: ValidateResult) -> str:
    """Bits per byte under every condition, the verdict, and the data behind it."""
    report = result.report
    setting = (
        f"{result.size} model, {format_count(result.num_steps)} steps,"
        f" {format_count(result.num_train_chunks)} chunks to train on;"
        f" held out: {format_count(report.num_documents)} documents, {format_count(report.num_chunks)} chunks"
    )
    lines = [setting, estimates("condition", report.bits_per_byte), report.verdict]
    points = [
        {
            "r(C) up to": f"{point.alpha:.1%}",
            "chunks": point.num_chunks,
            "on": point.bits_per_byte_on,
            "without": point.bits_per_byte_without,
        }
        for point in result.leakage
        if point.bits_per_byte_on is not None and point.bits_per_byte_without is not None
    ]
    lines += [render_table(points)]
    if left_out := result.num_chunks_not_looked_up:
        lines.append(f"{format_count(left_out)} chunks without a vector were not looked up: they have no r(C)")
    if not result.is_screened:
        lines.append(
            f"No leak scan compared the database with '{result.heldout_table}', so neighbours may contain the same text."
            " Run 'retrodb dedup' first."
        )
    return "\n".join([*lines, *([f"page  {result.page}"] if result.page else [])])
