"""A trained model at work: `retrodb retro eval` and `retrodb retro generate`, on any database that fits it.

The facts are in the database, not in the weights: on another database, or after an edit, the same model is shown other
neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from retrodb.encode.device import choose_compute
from retrodb.errors import MismatchError
from retrodb.format.arrays import Int64Array
from retrodb.format.entries import SpaceEntry
from retrodb.retro.checkpoint import Build, load_checkpoint
from retrodb.retro.collect import collect, with_chunks
from retrodb.retro.data import load_arrays
from retrodb.retro.evaluate import Estimate, by_document, chunk_bits, ratio
from retrodb.retro.fit import RetroFit
from retrodb.retro.generate import generate
from retrodb.retro.model import RetroModel
from retrodb.retro.run_training import load_base
from retrodb.retro.train import TrainedModel
from retrodb.stages.ingest.tokenize import load_tokenizer
from retrodb.stages.search.command import Searcher
from retrodb.view.neighbour_table import NeighbourTable
from retrodb.view.view import View


@dataclass(frozen=True)
class Fingerprints:
    """What model and data were made with; "" where it is not known."""

    model_tokenizer: str
    data_tokenizer: str
    model_encoder: str
    data_encoder: str


@dataclass(frozen=True)
class RetroEvalResult:
    """A model's bits per byte on some documents, with 95% intervals over documents."""

    checkpoint: str
    data: str
    documents: int
    chunks: int
    fingerprints: Fingerprints
    bits_per_byte: dict[str, Estimate]  # on, shuffled, off
    gain: dict[str, Estimate]  # shuffled, off: its bits per byte minus those of on, paired by document


@dataclass(frozen=True)
class ShownChunk:
    """A chunk that the model was shown as a neighbour of what it had just read."""

    after_token: int  # of prompt and continuation together: the neighbours came when so many were there
    chunk_id: int
    doc_id: str
    text: str


@dataclass(frozen=True)
class RetroGenerateResult:
    """What a model wrote, and what it was shown."""

    checkpoint: str
    database: str
    fingerprints: Fingerprints
    prompt: str
    text: str  # that follows the prompt
    shown: tuple[ShownChunk, ...]


def open_model(checkpoint: Path, base: Path | None = None) -> TrainedModel:
    """The model of a checkpoint; a RETROfit needs its base."""
    build: Build = RetroModel if base is None else lambda config: RetroFit(load_base(base), config)
    return load_checkpoint(checkpoint, build)


def run_retro_eval(
    checkpoint: Path,
    source: Path | NeighbourTable,
    *,
    base: Path | None = None,
    max_chunks: int = 2_000,
    seed: int = 0,
    device: str = "auto",
) -> RetroEvalResult:
    """Bits per byte of a model on an `arrays` export, or on the rows of a neighbour table.

    Args:
        max_chunks: whole documents are drawn until they have so many chunks.

    Raises:
        MismatchError: when tokenizer or encoder are not those that the model learned with; names both.
    """
    trained = open_model(checkpoint, base)
    if isinstance(source, Path):
        data, name = load_arrays(source).sample(max_chunks, seed), str(source)
    else:
        data, name = collect(source, max_chunks=max_chunks, seed=seed), source.view.storage.url
    prints = check_fingerprints(trained, data.tokenizer, data.encoder)
    if base is not None:  # it may have more rows of embedding than its tokenizer has tokens
        data = replace(data, vocab_size=trained.model.config.vocab_size)
    runs = {"on": data, "shuffled": data.shuffled(seed), "off": data.without()}
    where = choose_compute(device).device
    bits = {name: by_document(data, chunk_bits(trained, each, device=where)) for name, each in runs.items()}
    size = by_document(data, data.query_bytes)
    return RetroEvalResult(
        checkpoint=str(checkpoint),
        data=name,
        documents=len(size),
        chunks=len(data.query_tokens),
        fingerprints=prints,
        bits_per_byte={condition: ratio(values, size) for condition, values in bits.items()},
        gain={condition: ratio(bits[condition] - bits["on"], size) for condition in ("shuffled", "off")},
    )


def run_retro_generate(
    checkpoint: Path,
    view: View,
    prompt: str,
    *,
    max_tokens: int = 128,
    temperature: float = 0.8,
    top_k: int = 50,
    without: bool = False,
    space: str | None = None,
    base: Path | None = None,
    seed: int = 0,
    device: str = "auto",
) -> RetroGenerateResult:
    """Text that continues a prompt, the neighbours of every finished chunk found in a database.

    Args:
        without: write without retrieving.
        device: of the encoder; the model writes on the CPU.

    Raises:
        UsageError: for a prompt without tokens.
        MismatchError: when tokenizer or encoder are not those that the model learned with; names both.
    """
    trained = open_model(checkpoint, base)
    searcher = Searcher.open(view, space=space)
    prints = check_fingerprints(
        trained, view.settings.tokenizer_sha256, view.snapshot.existing(SpaceEntry, searcher.space).fingerprint
    )
    tokenizer = load_tokenizer(view.storage.url, view.settings.tokenizer_sha256)
    start = tokenizer.encode(prompt).tolist()
    config, shown, read = trained.model.config, list[ShownChunk](), 0

    def retrieve(chunk: Int64Array) -> Int64Array:
        nonlocal read
        read += len(chunk)
        ids = searcher.arrays([tokenizer.decode(chunk)], config.k, device=device)[0][0]
        shown.extend(_shown(view, ids, read))
        length, document = np.array([len(chunk)]), np.zeros(1, np.int64)
        data = with_chunks(view, chunk[None], length, [""], document, ids[None], space=searcher.space)
        values: Int64Array = replace(data, vocab_size=config.vocab_size).neighbour_values(document, config.k)[0]
        return values

    written = generate(
        trained,
        start,
        max_tokens,
        None if without else retrieve,
        temperature=temperature,
        top_k=top_k,
        seed=seed,
    )
    text = tokenizer.decode([*start, *written])[len(tokenizer.decode(start)) :]
    return RetroGenerateResult(str(checkpoint), view.storage.url, prints, prompt, text, tuple(shown))


def check_fingerprints(trained: TrainedModel, tokenizer: str, encoder: str) -> Fingerprints:
    """Both sides' fingerprints.

    Raises:
        MismatchError: where both sides know theirs and they differ.
    """
    prints = Fingerprints(trained.tokenizer, tokenizer, trained.encoder, encoder)
    for name, own, other in [("tokenizer", trained.tokenizer, tokenizer), ("encoder", trained.encoder, encoder)]:
        if own and other and own != other:
            what = f"the model learned with {name} {own}, the data has {other}"
            remedy = f"Use a database with the same {name}, or train on this one."
            raise MismatchError(what, remedy=remedy)
    return prints


def _shown(view: View, ids: Int64Array, after_token: int) -> list[ShownChunk]:
    ids = ids[ids >= 0]
    documents = view.chunks.documents(ids)
    return [
        ShownChunk(after_token, chunk, document["doc_id"] if document else "", text)
        for chunk, document, text in zip(ids.tolist(), documents, view.chunks.texts(ids), strict=True)
    ]
