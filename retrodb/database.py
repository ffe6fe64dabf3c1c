"""Database: the class behind the command line, for scripts and notebooks.

import retrodb

db = retrodb.create("my.retrodb", tokenizer="gpt2")
db.ingest(["articles.jsonl.zst"], source="wikipedia")
db.dedup(against=["wikitext103-test.jsonl"])
db.embed(); db.index(); db.neighbours()
for hit in db.search(["chunked cross-attention"])[0]:
    print(hit.score, hit.doc_id, hit.text)
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

from retrodb.config import InitParams, ValidateParams
from retrodb.facade.base import made_directory, make_context, params_of, storage_at
from retrodb.facade.command_memory import require_command
from retrodb.facade.evaluation_commands import EvaluationCommands
from retrodb.facade.evaluation_commands import retro_eval as retro_eval
from retrodb.facade.evaluation_commands import retro_fit as retro_fit
from retrodb.facade.evaluation_commands import retro_train as retro_train
from retrodb.facade.guard import guarded
from retrodb.facade.plan_commands import measure_plan_rates as measure_plan_rates
from retrodb.facade.plan_commands import plan_database as plan_database
from retrodb.facade.run_commands import RunCommands
from retrodb.facade.update_commands import UpdateCommands
from retrodb.format.kinds import path_of
from retrodb.memory import PROCESS_MEMORY
from retrodb.stages.context import Context
from retrodb.store.storage import Storage
from retrodb.view.named import DocumentName as DocumentName

if TYPE_CHECKING:
    from retrodb.format.arrays import Float32Array
    from retrodb.format.json_codec import JsonObject
    from retrodb.format.settings import Settings
    from retrodb.maintain.update.build import BuildPlan, BuildResult
    from retrodb.maintain.update.command import UpdateStep
    from retrodb.maintain.update.demo import DemoResult, DemoStage
    from retrodb.options import IngestOptions, InitOptions
    from retrodb.stages.tokenizer import TokenizerResult


class Database(UpdateCommands, EvaluationCommands, RunCommands):
    """A retrieval database. Every command of the command line is a method with a typed result.

    Methods take the options of a stage by name (`retrodb.options`). `retrodb.config` explains each of them.
    """


@guarded
def create(path: str | Path | Storage, *, clock: str | None = None, **options: Unpack[InitOptions]) -> Database:
    """Create an empty database. Of the options, `tokenizer` is required.

    Raises:
        ConflictError: there is already a database at this path.
    """
    from retrodb.stages.init import run_init

    storage, params = storage_at(path), params_of(InitParams, options)
    with made_directory(storage):
        run_init(Context(storage, clock=clock), params)
    return Database(storage, clock=clock)


@guarded
def has_database(path: str | Path | Storage) -> bool:
    """Whether there is a database at a path or a URL. Raises RetroDBError when an object store cannot be read."""
    return storage_at(path).exists(path_of("settings"))


@guarded
def plan_create(**options: Unpack[InitOptions]) -> Settings:
    """The permanent settings that `create` would write with these options. Nothing is written."""
    from retrodb.stages.init import plan_init

    return plan_init(params_of(InitParams, options)).settings


@guarded
def open(
    path: str | Path | Storage,
    *,
    workers: int | None = 1,
    memory_bytes: int | None = None,
    progress: bool = False,
    clock: str | None = None,
    engine: str = "local",
    lease_s: float | None = None,
    ray_address: str | None = None,
) -> Database:
    """Open a database. Arguments are those of `Database`."""
    return Database(
        path,
        workers=workers,
        memory_bytes=memory_bytes,
        progress=progress,
        clock=clock,
        engine=engine,
        lease_s=lease_s,
        ray_address=ray_address,
    )


@guarded
def database_of_export(out: str | Path) -> str:
    """The path of the database that an export comes from, read from the export's card.

    Raises:
        UsageError: there is no export at this path.
    """
    from retrodb.export.place import export_place, read_card

    return read_card(export_place(out)).database


@guarded
def train_tokenizer(
    inputs: Sequence[str | Path],
    out: str | Path,
    *,
    vocab_size: int = 32_000,
    format: str = "auto",
    text_field: str | None = None,
    key_field: str | None = None,
    value_field: str | None = None,
) -> TokenizerResult:
    """Train a byte-level BPE tokenizer on the texts of files, and write it to a file for `create(tokenizer=...)`."""
    from retrodb.corpus.document import Fields
    from retrodb.facade.given_files import given_output
    from retrodb.stages.tokenizer import run_train_tokenizer

    fields = Fields(text=text_field, key=key_field, value=value_field)
    return run_train_tokenizer(
        [str(i) for i in inputs], given_output(out), fields, vocab_size=vocab_size, format=format
    )


@guarded
def plan_build(
    path: str | Path | Storage,
    inputs: Sequence[str | Path],
    *,
    tokenizer: str,
    encoder: str = InitParams.encoder,
    against: Sequence[str | Path] = (),
    workers: int | None = 1,
    device: str | None = None,
    **options: Unpack[IngestOptions],
) -> BuildPlan:
    """What `build` would do: a preview of some documents, and an estimate for every stage. Arguments as in `build`."""
    from retrodb.maintain.update.build import build_recipe, plan_build

    recipe = build_recipe([str(i) for i in inputs], [str(f) for f in against], options)
    params = InitParams(tokenizer, encoder=encoder)
    return plan_build(make_context(path, workers=workers), recipe, params, device=device)


@guarded
def build(
    path: str | Path | Storage,
    inputs: Sequence[str | Path],
    *,
    tokenizer: str,
    encoder: str = InitParams.encoder,
    against: Sequence[str | Path] = (),
    workers: int | None = 1,
    memory_bytes: int | None = None,
    device: str | None = None,
    progress: bool = False,
    clock: str | None = None,
    engine: str = "local",
    lease_s: float | None = None,
    ray_address: str | None = None,
    report: Callable[[UpdateStep], None] | None = None,
    **options: Unpack[IngestOptions],
) -> BuildResult:
    """Create a database from files and run every stage. Writes a recipe, which `Database.update` follows later.

    Args:
        tokenizer: tokenizer of the language model, or "train" to train one on the input.
        encoder: encoder of the default space.
        against: files of test sets. Each file is one test set.
        memory_bytes: limit of the anonymous memory of all processes, as in `open`.
        device: device of encoders and neighbour joins.
        engine: what runs the tasks, as in `open`.
        report: called with every step when it ends.
        options: how the input is read. Without `source`, the name of the first input is the name of the source.

    Raises:
        ConflictError: there is another database at this path. Errors of a step are part of the result.
    """
    from retrodb.maintain.update.build import build_recipe, build_result, prepare_build

    context = make_context(
        path,
        workers=workers,
        memory_bytes=memory_bytes,
        progress=progress,
        clock=clock,
        engine=engine,
        lease_s=lease_s,
        ray_address=ray_address,
    )
    recipe = build_recipe([str(i) for i in inputs], [str(f) for f in against], options)
    require_command("update", context.memory_limit)
    with made_directory(context.storage):
        prepare_build(context, recipe, InitParams(tokenizer, encoder=encoder))
    database = Database(
        path,
        workers=workers,
        memory_bytes=memory_bytes,
        progress=progress,
        clock=clock,
        engine=engine,
        lease_s=lease_s,
        ray_address=ray_address,
    )
    result = database.update(device=device, report=report)
    return build_result(result, database.stats())


@guarded
def read_queries(path: Path, *, as_vectors: bool = False) -> list[str] | Float32Array:
    """Read search queries from a file: texts, one per line or as JSON Lines, or vectors (Q, D) from an `.npy` file."""
    from retrodb.stages.search.query_file import read_texts, read_vectors

    return read_vectors(path) if as_vectors else read_texts(path)


@guarded
def read_doc_ids(path: str | Path) -> list[str | DocumentName]:
    """Read a list of document ids from a file, for `filter`, `undelete` and `purge`: one per line, or JSON Lines.

    A line of JSON Lines is `{"id": ...}` or `{"id": ..., "source": ...}`. The file is UTF-8, or UTF-16 with a byte order
    mark. The path "-" is standard input.

    Raises:
        InputError: for a file that is not such a list. File and line are named.
    """
    from retrodb.view.id_list import parse_id_lines, read_id_list

    if str(path) == "-":
        return [name for name in parse_id_lines(sys.stdin.buffer.read(), "standard input") if name != ""]
    return read_id_list(path)


@guarded
def demo(
    folder: str | Path,
    *,
    encoder: str = InitParams.encoder,
    limit: int | None = None,
    steps: int = 100,
    workers: int | None = 1,
    memory_bytes: int | None = None,
    progress: bool = False,
    report: Callable[[DemoStage], None] | None = None,
) -> DemoResult:
    """Build a database from the documentation of Python's standard library, and run every stage once.

    Args:
        encoder: encoder of the default space.
        limit: largest number of documents in the database, of test documents, and of chunks for the validation.
        steps: training steps of the validation.
        memory_bytes: limit of the anonymous memory of all processes, as in `open`; the validation takes what its model needs.
        report: called with every stage when it ends.
    """
    from retrodb.facade.given_files import given_output
    from retrodb.maintain.update.demo import run_demo

    context = make_context(folder, workers=workers, memory_bytes=memory_bytes, progress=progress)
    PROCESS_MEMORY.begin(context.engine.memory_limit)

    def validate() -> JsonObject:
        from retrodb.retro.validate import run_validate

        params = ValidateParams(steps=steps, batch_chunks=16, max_heldout_chunks=limit or 300)
        report = run_validate(context.view(), context.progress, params).report
        values = {name: estimate.value for name, estimate in report.bits_per_byte.items()}
        return {"bits_per_byte": values, "verdict": report.verdict}

    return run_demo(context, given_output(folder), encoder=encoder, limit=limit, validate=validate, report=report)
