"""Using a trained model on any database that fits it: `retrodb retro eval` and `retrodb retro generate`.

The facts are in the database, not in the weights: with another database, or after an edit, the same model reads other neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from retrodb.encode.device import choose_compute
from retrodb.errors import MismatchError
from retrodb.format.arrays import Int64Array
from retrodb.format.entries import SpaceEntry
from retrodb.retro.checkpoint import ModelBuilder, load_checkpoint
from retrodb.retro.collect import collect_data, data_of_chunks
from retrodb.retro.data import load_arrays
from retrodb.retro.evaluate import BitsPerByte, chunk_bits, ratio_estimate, sum_by_document
from retrodb.retro.fit import RetroFit
from retrodb.retro.generate import generate_tokens
from retrodb.retro.model import RetroModel
from retrodb.retro.run_training import load_base
from retrodb.retro.training import TrainedModel
from retrodb.stages.ingest.tokenize import load_tokenizer
from retrodb.stages.search.command import Searcher
from retrodb.view.neighbour_table import NeighbourTable
from retrodb.view.view import View


@dataclass(frozen=True)
class Fingerprints:
    """The tokenizer and encoder of a model and of data; "" where it is not known."""

    model_tokenizer: str
    data_tokenizer: str
    model_encoder: str
    data_encoder: str


@dataclass(frozen=True)
class RetroEvalResult:
    """A model's bits per byte on some documents, with 95% intervals over documents."""

    checkpoint: str
    data: str
    num_documents: int
    num_chunks: int
    fingerprints: Fingerprints
    bits_per_byte: dict[str, BitsPerByte]  # on, shuffled, off
    gain: dict[str, BitsPerByte]  # shuffled, off: its bits per byte minus those of on, paired by document


@dataclass(frozen=True)
class RetrievedChunk:
    """A chunk that the model read as a neighbour of the chunk before."""

    after_token: int  # number of tokens, prompt included, after which it was retrieved
    chunk_id: int
    doc_id: str
    text: str


@dataclass(frozen=True)
class RetroGenerateResult:
    """The text that a model generated, and the chunks that were retrieved for it."""

    checkpoint: str
    database: str
    fingerprints: Fingerprints
    prompt: str
    text: str  # after the prompt
    retrieved: tuple[RetrievedChunk, ...]


def load_model(checkpoint: Path, base: Path | None = None) -> TrainedModel:
    """The model of a checkpoint; a RETROfit needs its base."""
    build: ModelBuilder = RetroModel if base is None else lambda config: RetroFit(load_base(base), config)
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
        max_chunks: whole documents are drawn until they have this many chunks.

    Raises:
        MismatchError: when tokenizer or encoder are not those of the training; names both.
    """
    trained = load_model(checkpoint, base)
    if isinstance(source, Path):
        data, name = load_arrays(source).sample(max_chunks, seed), str(source)
    else:
        data, name = collect_data(source, max_chunks=max_chunks, seed=seed), source.view.storage.url
    fingerprints = check_fingerprints(trained, data.tokenizer, data.encoder)
    if base is not None:  # its embedding may have more rows than its tokenizer has tokens
        data = replace(data, vocab_size=trained.model.config.vocab_size)
    runs = {"on": data, "shuffled": data.shuffled(seed), "off": data.without()}
    torch_device = choose_compute(device).device
    bits = {
        condition: sum_by_document(data, chunk_bits(trained, neighbours, device=torch_device))
        for condition, neighbours in runs.items()
    }
    bytes_D = sum_by_document(data, data.query_bytes)
    return RetroEvalResult(
        checkpoint=str(checkpoint),
        data=name,
        num_documents=len(bytes_D),
        num_chunks=len(data.query_tokens),
        fingerprints=fingerprints,
        bits_per_byte={condition: ratio_estimate(values, bytes_D) for condition, values in bits.items()},
        gain={condition: ratio_estimate(bits[condition] - bits["on"], bytes_D) for condition in ("shuffled", "off")},
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
    """Text that continues a prompt, with the neighbours of every finished chunk from a database.

    Args:
        without: generate without retrieval.
        device: of the encoder; the model runs on the CPU.

    Raises:
        UsageError: for a prompt without tokens.
        MismatchError: when tokenizer or encoder are not those of the training; names both.
    """
    trained = load_model(checkpoint, base)
    searcher = Searcher.open(view, space=space, is_limited=False)
    fingerprints = check_fingerprints(
        trained, view.settings.tokenizer_sha256, view.snapshot.existing(SpaceEntry, searcher.space).fingerprint
    )
    tokenizer = load_tokenizer(view.storage.url, view.settings.tokenizer_sha256)
    start = tokenizer.encode(prompt).tolist()
    config, retrieved, num_read = trained.model.config, list[RetrievedChunk](), 0

    def retrieve(chunk: Int64Array) -> Int64Array:
        nonlocal num_read
        num_read += len(chunk)
        ids = searcher.arrays([tokenizer.decode(chunk)], config.k, device=device)[0][0]
        retrieved.extend(_retrieved(view, ids, num_read))
        length, document = np.array([len(chunk)]), np.zeros(1, np.int64)
        data = data_of_chunks(view, chunk[None], length, [""], document, ids[None], space=searcher.space)
        values: Int64Array = replace(data, vocab_size=config.vocab_size).neighbour_values(document, config.k)[0]
        return values

    generated = generate_tokens(
        trained,
        start,
        max_tokens,
        None if without else retrieve,
        temperature=temperature,
        top_k=top_k,
        seed=seed,
    )
    text = tokenizer.decode([*start, *generated])[len(tokenizer.decode(start)) :]
    return RetroGenerateResult(str(checkpoint), view.storage.url, fingerprints, prompt, text, tuple(retrieved))


def check_fingerprints(trained: TrainedModel, tokenizer: str, encoder: str) -> Fingerprints:
    """The fingerprints of a model and of the data for it.

    Raises:
        MismatchError: where both are known and differ.
    """
    pairs = {"tokenizer": (trained.tokenizer, tokenizer), "encoder": (trained.encoder, encoder)}
    for name, (of_model, of_data) in pairs.items():
        if of_model and of_data and of_model != of_data:
            what = f"the model was trained with {name} {of_model}, the data has {of_data}"
            raise MismatchError(what, remedy=f"Use a database with the same {name}, or train on this one.")
    return Fingerprints(trained.tokenizer, tokenizer, trained.encoder, encoder)


def _retrieved(view: View, ids: Int64Array, after_token: int) -> list[RetrievedChunk]:
    ids = ids[ids >= 0]
    documents = view.chunks.documents(ids)
    return [
        RetrievedChunk(after_token, chunk, document["doc_id"] if document else "", text)
        for chunk, document, text in zip(ids.tolist(), documents, view.chunks.texts(ids), strict=True)
    ]
