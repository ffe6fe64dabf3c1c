"""Build: create a database from files in one command. It estimates the work, writes a recipe, and runs an update from it.

An interrupted build is continued by the same command, or by `retrodb update`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from retrodb.config import EmbedParams, InitParams, from_mapping
from retrodb.corpus.document import Document
from retrodb.corpus.input_files import expand_inputs, plan_splits
from retrodb.corpus.lm_tokenizer import Tokenizer
from retrodb.corpus.readers import read_split_leniently
from retrodb.corpus.tokenizer_files import resolve_tokenizer
from retrodb.corpus.train_tokenizer import train_byte_bpe
from retrodb.errors import ConflictError, RetroDBError, UsageError
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
    load_recipe,
    resolved,
)
from retrodb.maintain.update.sample import Preview, read_heads
from retrodb.stages.context import Context
from retrodb.stages.ingest.change import HELD_OUT_SET
from retrodb.stages.ingest.read_tasks import fields_of, limits_of
from retrodb.stages.init import refuse_used_folder, run_init
from retrodb.store.digest import digest_bytes
from retrodb.store.snapshots import read_head, snapshot_numbers
from retrodb.store.storage import Storage
from retrodb.view.view import SELF

_OF_UNUSED = re.compile(r"(heads|snapshots)/\d{20}\.json|manifests/[0-9a-f]{64}\.parquet")
"""The files of snapshots, by the patterns of their names: nothing else is deleted for a new attempt."""

TRAIN = "train"
"""Given instead of a tokenizer's name: train one on the input."""

VOCAB_SIZE = 32_000
_TRAINING_BYTES = 256 << 20  # of text, from the whole input: more text changes a vocabulary little
_SPLIT_BYTES = 1 << 28


@dataclass(frozen=True)
class BuildPlan:
    """What a build would do."""

    database: str
    num_files: int  # of the input
    size_bytes: int  # of the input, as stored
    num_documents: int
    num_chunks: int
    is_exact: bool  # the input was counted, not estimated
    previews: tuple[Preview, ...]
    stages: tuple[StageEstimate, ...]
    notes: tuple[str, ...] = ()  # about the input files


@dataclass(frozen=True)
class BuildResult:
    """What was built."""

    database: str
    snapshot: int
    num_documents: int  # live
    num_chunks: int  # live
    num_tokens: int
    size_bytes: int  # of all live files
    elapsed_s: float
    recipe: str  # path of its file
    outcome: str  # of the update
    steps: tuple[UpdateStep, ...]
    exit_code: int


def build_recipe(inputs: Sequence[str], against: Sequence[str], options: Mapping[str, object]) -> Recipe:
    """The recipe of a build. Its paths are absolute, because its file is inside the database.

    Args:
        options: fields of `IngestParams`. Without `source`, the source has the name of the first input.

    Raises:
        UsageError: there are no inputs, or two test sets have the same name.
    """
    if not inputs:
        raise UsageError("no input files", remedy="Name files, folders or globs after the database.")
    given = {name: value for name, value in options.items() if value is not None}
    name = str(given.pop("source", None) or _stem(inputs[0]))
    source = from_mapping(SourceRecipe, {**given, "source": name, "inputs": list(inputs)}, where="options")
    tables = {SELF: TableRecipe()} | ({HELD_OUT_SET: TableRecipe(queries=HELD_OUT_SET)} if source.holdout else {})
    testsets = {_stem(file): TestsetRecipe(files=(file,)) for file in against}
    if len(testsets) < len(against):
        raise UsageError("two test sets have the same name", remedy="Give the files of --against different names.")
    return resolved(Recipe(sources={name: source}, testsets=testsets, neighbours=tables), os.getcwd())


def _stem(path: str) -> str:
    return Path(os.path.abspath(path)).name.lstrip(".").partition(".")[0].strip("*?[]-_") or "documents"


def plan_build(context: Context, recipe: Recipe, params: InitParams, *, device: str | None = None) -> BuildPlan:
    """Read a sample of the input and estimate every stage; nothing is written.

    Args:
        device: of the encoder; None is that of the recipe.

    Raises:
        InputError, UsageError: the inputs, the tokenizer or the encoder cannot be read.
        ConflictError: another database exists at this path.
    """
    _refuse_other(context, recipe, params)
    [(name, source)] = recipe.sources.items()
    sample = sample_source(source, _tokenizer(source, params), params.chunk_tokens)
    if source.limit is not None:
        sample = sample.scaled(min(source.limit, sample.num_documents))
    held_out = {HELD_OUT_SET: round(sample.num_chunks * source.holdout)}
    state = State(spaces={"default": EmbedParams(params.encoder)}, num_pending={"default": 0}, num_rows=held_out)
    on_device = replace(recipe, embed=replace(recipe.embed, device=device)) if device else recipe
    stages = stage_estimates(on_device, Work().plus(sample), state, context.num_workers)
    return BuildPlan(
        database=context.storage.url,
        num_files=sample.num_files,
        size_bytes=sample.size_bytes,
        num_documents=sample.num_documents,
        num_chunks=sample.num_chunks,
        is_exact=sample.is_whole,
        previews=sample.previews,
        stages=(ingest_estimate(name, sample, context.num_workers), *stages),
        notes=sample.notes,
    )


def _tokenizer(source: SourceRecipe, params: InitParams) -> Tokenizer:
    """The tokenizer for the estimate."""
    if params.tokenizer != TRAIN:
        return resolve_tokenizer(params.tokenizer)
    files = expand_inputs(
        source.inputs, source.files_from, source.format, include=source.include, exclude=source.exclude
    )
    return train_byte_bpe(
        (text for head in read_heads(files, source) for d in head.documents for text in d.texts), VOCAB_SIZE
    )


def prepare_build(context: Context, recipe: Recipe, params: InitParams) -> None:
    """Write the recipe and create the database, unless an interrupted build has done so.

    Raises:
        ConflictError: another database exists at this path.
    """
    _refuse_other(context, recipe, params)
    storage = context.storage
    if snapshot_numbers(storage):
        if _is_same(context, recipe, params):
            return
        _forget(storage)
    content = dump_recipe(recipe).encode()
    is_interrupted = storage.exists(RECIPE) and storage.read(RECIPE) == content
    later: dict[str, bytes | None] = (
        dict.fromkeys((path_of("tokenizer"), path_of("settings"))) if is_interrupted else {}
    )
    refuse_used_folder(storage, {RECIPE: content, **later})
    if not storage.put_if_absent(RECIPE, content) and storage.read(RECIPE) != content:
        raise ConflictError(
            f"another '{RECIPE}' is there already",
            where=storage.url,
            remedy="Choose a new path or an empty folder, or run the build that wrote the recipe again.",
        )
    if params.tokenizer == TRAIN:
        path = path_of("tokenizer")
        if not storage.exists(path):
            [source] = recipe.sources.values()
            storage.write(path, train_byte_bpe(_training_texts(source), VOCAB_SIZE).to_bytes())
        params = replace(params, tokenizer=str(storage.local(path)))
    run_init(context, params, written=[RECIPE])


def _training_texts(source: SourceRecipe) -> Iterator[str]:
    """Every n-th text, so that a bounded amount of text comes from all parts of the input."""
    files = expand_inputs(
        source.inputs, source.files_from, source.format, include=source.include, exclude=source.exclude
    )
    step = 1 + sum(file.size_bytes for file in files) // _TRAINING_BYTES
    splits = plan_splits(files, _SPLIT_BYTES, source.marker)
    records = (
        record for split in splits for record in read_split_leniently(split, fields_of(source), limits_of(source))
    )
    documents = (record for record in islice(records, source.limit) if isinstance(record, Document))
    return (text for document in islice(documents, 0, None, step) for text in document.texts)


def _refuse_other(context: Context, recipe: Recipe, params: InitParams) -> None:
    """Raises ConflictError when a database exists that this build did not create."""
    storage = context.storage
    if not snapshot_numbers(storage) or _is_same(context, recipe, params) or _is_unused(storage):
        return
    raise ConflictError(
        "a database exists here already, and another build or command created it",
        where=storage.url,
        remedy="Continue it with 'retrodb update', add to it with 'retrodb ingest', or choose another path.",
    )


def _is_unused(storage: Storage) -> bool:
    """Whether a build created the database and has never added a document, for example because its options were wrong."""
    if not storage.exists(RECIPE) or read_head(storage).next_chunk > 0:
        return False
    try:
        return storage.read(RECIPE) == dump_recipe(load_recipe(storage, None)).encode()  # nobody has edited it
    except RetroDBError:
        return False


def _forget(storage: Storage) -> None:
    """Delete the settings, the recipe and the snapshots of an unused database, so that a build can begin again."""
    for path in (path for folder in ("heads", "snapshots", "manifests") for path in storage.list(folder)):
        if _OF_UNUSED.fullmatch(path):
            storage.delete(path)
    for path in ("retrodb.toml", path_of("tokenizer"), RECIPE):
        storage.delete(path)


def _is_same(context: Context, recipe: Recipe, params: InitParams) -> bool:
    """Whether a build with this recipe and these parameters created the database."""
    storage = context.storage
    is_same = storage.exists(RECIPE) and storage.read(RECIPE) == dump_recipe(recipe).encode()
    default = read_head(storage).default_encoder
    is_same = is_same and default is not None and default.params.encoder == params.encoder
    if is_same and params.tokenizer != TRAIN:
        digest = digest_bytes(resolve_tokenizer(params.tokenizer).to_bytes()).sha256.hex()
        is_same = digest == context.settings().tokenizer_sha256
    return is_same


def build_result(update: UpdateResult, stats: Stats) -> BuildResult:
    """The result of a build, from that of its update."""
    return BuildResult(
        database=stats.database,
        snapshot=stats.snapshot,
        num_documents=stats.num_live_documents,
        num_chunks=stats.num_live_chunks,
        num_tokens=stats.num_tokens,
        size_bytes=stats.size_bytes,
        elapsed_s=update.elapsed_s,
        recipe=f"{stats.database}/{RECIPE}",
        outcome=update.outcome,
        steps=update.steps,
        exit_code=update.exit_code,
    )
