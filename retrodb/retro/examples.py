"""The content of a validation page: the figures of an experiment, and the chunks where retrieval helped most and least.

A chunk is read with the neighbours of the chunk before it, so an example shows those and not the neighbours of the chunk itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from retrodb.format.arrays import Int64Array
from retrodb.retro.data import RetroData
from retrodb.retro.experiment import Experiment
from retrodb.retro.leakage import SharedRuns, leakage_curve, longest_shared_runs
from retrodb.retro.page import ChunkExample, MarkedText, ValidationPage
from retrodb.stages.ingest.tokenize import load_tokenizer
from retrodb.view.view import View

_NUM_EXAMPLES = 3  # of each kind


def validation_page(experiment: Experiment, view: View) -> ValidationPage:
    """The content of the page about an experiment."""
    result, evaluation, data = experiment.result, experiment.evaluation, experiment.heldout
    report = result.report
    screened = "yes" if result.is_screened else "no: neighbours may contain the same text, run 'retrodb dedup'"
    saved = evaluation.bits["without"] - evaluation.bits["on"]
    shown = data_as_read(data)
    order = np.argsort(-saved, kind="stable")
    order = order[(shown.neighbours[order] >= 0).any(axis=1)]
    runs = longest_shared_runs(shown)
    return ValidationPage(
        title="Do the neighbours help a language model?",
        verdict=report.verdict,
        setting=[
            ("database", view.storage.url),
            ("snapshot", str(result.snapshot)),
            ("space", result.space),
            ("tables", f"{result.train_table} to train with, {result.heldout_table} held out"),
            ("database compared with the held-out documents", screened),
            (
                "model",
                f"{result.size}, {result.num_steps:,} steps, {report.num_tokens_seen:,} tokens for each of the two models",
            ),
            (
                "held out",
                f"{report.num_documents:,} documents, {report.num_chunks:,} chunks, {report.num_bytes:,} bytes",
            ),
        ],
        bits_per_byte=report.bits_per_byte,
        gain=report.gain,
        losses={"with neighbours": experiment.retrieving.losses, "without": experiment.plain.losses},
        leakage={
            name: leakage_curve(experiment.runs, evaluation.bits[condition], data.query_bytes)
            for name, condition in {"with retrieval": "on", "trained without": "without"}.items()
        },
        chunks_by_ratio=experiment.runs.histogram().tolist(),
        fraction_at_eighth=experiment.runs.fraction_from(1 / 8),
        num_chunks_not_looked_up=result.num_chunks_not_looked_up,
        helped=_examples(experiment, view, shown, runs, order[:_NUM_EXAMPLES]),
        hindered=_examples(experiment, view, shown, runs, order[::-1][:_NUM_EXAMPLES]),
    )


def data_as_read(data: RetroData) -> RetroData:
    """Every chunk with the neighbours that a model sees while it reads the chunk: those of the chunk before."""
    documents = data.query_documents
    follows = np.append(False, documents[1:] == documents[:-1])[: len(documents)]
    before = np.roll(data.neighbours, 1, axis=0)
    return replace(data, neighbours=np.where(follows[:, None], before, -1))


def _examples(
    experiment: Experiment, view: View, shown: RetroData, runs: SharedRuns, rows: Int64Array
) -> Sequence[ChunkExample]:
    bits, tokenizer = experiment.evaluation.bits, load_tokenizer(view.storage.url, view.settings.tokenizer_sha256)
    ids, _ = experiment.table.read(experiment.rows)
    queries = view.query_set(experiment.table.query_set)

    def marked_text(tokens: Int64Array, start: int, length: int) -> MarkedText:
        tokens = tokens[tokens != shown.pad_token] if length == 0 else tokens
        pieces = tokens[:start], tokens[start : start + length], tokens[start + length :]
        # A piece may begin or end inside a character: each part is then shown as the replacement character.
        return MarkedText(
            *(tokenizer.decode_bytes(piece[piece != shown.pad_token]).decode(errors="replace") for piece in pieces)
        )

    examples = []
    for row in rows.tolist():
        nearest, length = int(runs.neighbour[row]), int(runs.length[row])
        value = shown.neighbour_values(np.array([row]), nearest + 1)[0, nearest]
        chunk = shown.queries(np.array([row]))[0]
        document = view.chunks.documents(ids[row - 1, nearest : nearest + 1])[0]
        heldout_document = queries.documents(experiment.rows[row : row + 1])[0]
        examples.append(
            ChunkExample(
                doc_id=heldout_document["doc_id"] if heldout_document else "",
                chunk=marked_text(chunk, int(runs.start[row]), length),
                neighbour_doc_id=document["doc_id"] if document else "",
                neighbour=marked_text(value, int(runs.neighbour_start[row]), length),
                shared_tokens=length,
                bits_on=float(bits["on"][row]),
                bits_without=float(bits["without"][row]),
            )
        )
    return examples
