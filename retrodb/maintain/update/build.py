"""Build: the first day in one command. It looks, says what it would do, writes the recipe, and updates from it.

So a build that was interrupted is continued by the same command, and by `retrodb update` ever after.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from retrodb.config import EmbedParams, InitParams, from_mapping
from retrodb.corpus.document import Document
from retrodb.corpus.input_files import expand_inputs, plan_splits
from retrodb.corpus.lm_tokenizer import Tokenizer
from retrodb.corpus.readers import read_split
from retrodb.corpus.tokenizer_files import resolve_tokenizer
from retrodb.corpus.train_tokenizer import train_byte_bpe
from retrodb.errors import ConflictError, UsageError
from retrodb.format.kinds import path_of
from retrodb.maintain.stats import Stats
from retrodb.maintain.update.command import UpdateResult, UpdateStep
from retrodb.maintain.update.estimate import StageEstimate, State, Work, ingest_estimate, sample_source, stage_estimates
from retrodb.maintain.update.recipe import (
    RECIPE,
    Recipe,
    SourceRecipe,
    TableRecipe,
    TestsetRecipe,
    dump_recipe,
    resolved,
)
from retrodb.maintain.update.sample import Preview, read_heads
from retrodb.stages.context import Context
from retrodb.stages.ingest.change import HELD_OUT_SET
from retrodb.stages.ingest.read_tasks import fields_of, limits_of
from retrodb.stages.init import run_init
from retrodb.store.digest import digest_bytes
from retrodb.store.snapshots import read_head, snapshot_numbers
from retrodb.view.view import SELF

TRAIN = "train"
"""Instead of a tokenizer's name: train one on the input."""

VOCAB_SIZE = 32_000
_TRAINING_BYTES = 256 << 20  # of text, spread over the input: more changes a vocabulary little
_SPLIT_BYTES = 1 << 28


@dataclass(frozen=True)
class BuildPlan:
    """What a build would do."""

    database: str
    files: int
    size_bytes: int  # of the input, as stored
    documents: int
    chunks: int
    is_whole: bool  # the input was counted, not estimated
    previews: tuple[Preview, ...]
    stages: tuple[StageEstimate, ...]


@dataclass(frozen=True)
class BuildResult:
    """What was built."""

    database: str
    snapshot: int
    documents: int
    chunks: int
    tokens: int
    size_bytes: int
    elapsed_s: float
    recipe: str  # where it lies
    outcome: str  # as that of an update
    steps: tuple[UpdateStep, ...]
    exit_code: int


def build_recipe(inputs: Sequence[str], against: Sequence[str], options: Mapping[str, Any]) -> Recipe:
    """The recipe of a build, its paths absolute: it will lie inside the database.

    Args:
        options: fields of `IngestParams`; without `source` the first input gives the name.

    Raises:
        UsageError: without inputs, or with test sets of one name.
    """
    if not inputs:
        raise UsageError("no input files", remedy="Name files, folders or globs after the database.")
    given = {name: value for name, value in options.items() if value is not None}
    name = given.pop("source", None) or _stem(inputs[0])
    source = from_mapping(SourceRecipe, {**given, "source": name, "inputs": list(inputs)}, where="options")
    tables = {SELF: TableRecipe()} | ({HELD_OUT_SET: TableRecipe(queries=HELD_OUT_SET)} if source.holdout else {})
    testsets = {_stem(file): TestsetRecipe(files=(file,)) for file in against}
    if len(testsets) < len(against):
        raise UsageError("two test sets would have one name", remedy="Give the files of --against different names.")
    return resolved(Recipe(sources={name: source}, testsets=testsets, neighbours=tables), os.getcwd())


def _stem(path: str) -> str:
    return Path(os.path.abspath(path)).name.lstrip(".").partition(".")[0].strip("*?[]-_") or "documents"


def plan_build(context: Context, recipe: Recipe, params: InitParams, *, device: str | None = None) -> BuildPlan:
    """Look into the input and estimate every stage; nothing is written.

    Args:
        device: of the encoder; None is that of the recipe.

    Raises:
        InputError, UsageError: for inputs, a tokenizer or an encoder that cannot be had.
        ConflictError: when there is another database already.
    """
    _refuse_other(context, recipe, params)
    [(name, source)] = recipe.sources.items()
    sample = sample_source(source, _tokenizer(source, params), params.chunk_tokens)
    if source.limit is not None:
        sample = sample.scaled(min(source.limit, sample.documents))
    held_out = {HELD_OUT_SET: round(sample.chunks * source.holdout)}
    state = State(spaces={"default": EmbedParams(params.encoder)}, pending={"default": 0}, rows=held_out)
    on_device = replace(recipe, embed=replace(recipe.embed, device=device)) if device else recipe
    stages = stage_estimates(on_device, Work().and_that_of(sample), state, context.num_workers)
    return BuildPlan(
        database=context.storage.url,
        files=sample.files,
        size_bytes=sample.size_bytes,
        documents=sample.documents,
        chunks=sample.chunks,
        is_whole=sample.is_whole,
        previews=sample.previews,
        stages=(ingest_estimate(name, sample, context.num_workers), *stages),
    )


def _tokenizer(source: SourceRecipe, params: InitParams) -> Tokenizer:
    """The tokenizer to estimate with."""
    if params.tokenizer != TRAIN:
        return resolve_tokenizer(params.tokenizer)
    files = expand_inputs(source.inputs, source.files_from, source.format)
    return train_byte_bpe((d.text for head in read_heads(files, source) for d in head.documents), VOCAB_SIZE)


def prepare_build(context: Context, recipe: Recipe, params: InitParams) -> None:
    """Write the recipe and create the database, unless an earlier build that was interrupted did.

    Raises:
        ConflictError: when there is another database already.
    """
    _refuse_other(context, recipe, params)
    storage = context.storage
    if snapshot_numbers(storage):
        return
    storage.write(RECIPE, dump_recipe(recipe).encode())
    if params.tokenizer == TRAIN:
        path = path_of("tokenizer")
        if not storage.exists(path):
            [source] = recipe.sources.values()
            storage.write(path, train_byte_bpe(_training_texts(source), VOCAB_SIZE).to_bytes())
        params = replace(params, tokenizer=str(storage.local(path)))
    run_init(context, params)


def _training_texts(source: SourceRecipe) -> Iterator[str]:
    """Every n-th text of the input, so that a bounded share of it comes from everywhere."""
    files = expand_inputs(source.inputs, source.files_from, source.format)
    step = 1 + sum(file.size_bytes for file in files) // _TRAINING_BYTES
    splits = plan_splits(files, _SPLIT_BYTES, source.marker)
    records = (record for split in splits for record in read_split(split, fields_of(source), limits_of(source)))
    documents = (record for record in islice(records, source.limit) if isinstance(record, Document))
    return (document.text for document in islice(documents, 0, None, step))


def _refuse_other(context: Context, recipe: Recipe, params: InitParams) -> None:
    """Raises ConflictError where a database lies that this build did not begin."""
    storage = context.storage
    if not snapshot_numbers(storage):
        return
    own = storage.exists(RECIPE) and storage.read(RECIPE) == dump_recipe(recipe).encode()
    default = read_head(storage).default_encoder
    own = own and default is not None and default.params.encoder == params.encoder
    if own and params.tokenizer != TRAIN:
        digest = digest_bytes(resolve_tokenizer(params.tokenizer).to_bytes()).sha256.hex()
        own = digest == context.settings().tokenizer_sha256
    if not own:
        raise ConflictError(
            "a database exists here already, and not of this build",
            where=storage.url,
            remedy="Continue it with 'retrodb update', add to it with 'retrodb ingest', or choose another path.",
        )


def build_result(update: UpdateResult, stats: Stats) -> BuildResult:
    """The sum of a build, from the update that did it."""
    return BuildResult(
        database=stats.database,
        snapshot=stats.snapshot,
        documents=stats.num_live_documents,
        chunks=stats.num_live_chunks,
        tokens=stats.num_tokens,
        size_bytes=stats.size_bytes,
        elapsed_s=update.elapsed_s,
        recipe=f"{stats.database}/{RECIPE}",
        outcome=update.outcome,
        steps=update.steps,
        exit_code=update.exit_code,
    )
