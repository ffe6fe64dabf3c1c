"""Database: the one class that the command line and notebooks use.

import retrodb

db = retrodb.create("my.retrodb", tokenizer="gpt2")
db.ingest(["articles.jsonl.zst"], source="wikipedia")
db.dedup(against=["wikitext103-test.jsonl"])
db.embed(); db.index(); db.neighbours()
for hit in db.search(["chunked cross-attention"])[0]:
    print(hit.score, hit.doc_id, hit.text)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retrodb.config import InitParams, ValidateParams
from retrodb.facade.base import make_context, params_of
from retrodb.facade.evaluation_commands import EvaluationCommands
from retrodb.facade.evaluation_commands import retro_eval as retro_eval
from retrodb.facade.evaluation_commands import retro_fit as retro_fit
from retrodb.facade.evaluation_commands import retro_train as retro_train
from retrodb.facade.maintenance_commands import MaintenanceCommands
from retrodb.facade.read_commands import ReadCommands
from retrodb.facade.stage_commands import StageCommands
from retrodb.stages.context import Context
from retrodb.store.storage import Storage, open_storage

if TYPE_CHECKING:
    from retrodb.format.arrays import Float32Array
    from retrodb.format.settings import Settings
    from retrodb.maintain.update.build import BuildPlan, BuildResult
    from retrodb.maintain.update.command import UpdateStep
    from retrodb.maintain.update.demo import DemoResult, DemoStage
    from retrodb.stages.tokenizer import TokenizerResult


class Database(StageCommands, ReadCommands, MaintenanceCommands, EvaluationCommands):
    """A retrieval database: its stages as methods, each ending in one commit.

    Options of a stage are the fields of its parameter class in `retrodb.config`, given by name.
    """


def create(path: str | Path | Storage, *, clock: str | None = None, **options: Any) -> Database:
    """Create a database. Options: `InitParams`, of which `tokenizer` is required.

    Raises:
        ConflictError: when there is one already.
    """
    from retrodb.stages.init import run_init

    storage = open_storage(str(path)) if isinstance(path, str | Path) else path
    run_init(Context(storage, clock=clock), params_of(InitParams, options))
    return Database(storage, clock=clock)


def plan_create(**options: Any) -> Settings:
    """What `create` would fix for ever with these options; nothing is written."""
    from retrodb.stages.init import plan_init

    return plan_init(params_of(InitParams, options))[0]


def open(path: str | Path | Storage, **options: Any) -> Database:
    """Open a database; options are those of `Database`."""
    return Database(path, **options)


def database_of_export(out: str | Path) -> str:
    """Where the database of an export lies, as its card says.

    Raises:
        UsageError: when there is no export at this place.
    """
    from retrodb.export.refresh import read_card

    return str(read_card(Path(out))["database"])


def train_tokenizer(
    inputs: Sequence[str | Path], out: str | Path, *, vocab_size: int = 32_000, format: str = "auto"
) -> TokenizerResult:
    """Train a byte-level BPE on the texts of files and write it as a file for `create(tokenizer=...)`."""
    from retrodb.stages.tokenizer import run_train_tokenizer

    return run_train_tokenizer([str(i) for i in inputs], Path(out), vocab_size=vocab_size, format=format)


def plan_build(
    path: str | Path | Storage,
    inputs: Sequence[str | Path],
    *,
    tokenizer: str,
    encoder: str = InitParams.encoder,
    against: Sequence[str | Path] = (),
    workers: int | None = 1,
    **options: Any,
) -> BuildPlan:
    """What `build` would do: parsed documents, and an estimate of every stage. Arguments are those of `build`."""
    from retrodb.maintain.update.build import build_recipe, plan_build

    recipe = build_recipe([str(i) for i in inputs], [str(f) for f in against], options)
    return plan_build(make_context(path, workers=workers), recipe, InitParams(tokenizer, encoder=encoder))


def build(
    path: str | Path | Storage,
    inputs: Sequence[str | Path],
    *,
    tokenizer: str,
    encoder: str = InitParams.encoder,
    against: Sequence[str | Path] = (),
    workers: int | None = 1,
    progress: bool = False,
    clock: str | None = None,
    report: Callable[[UpdateStep], None] | None = None,
    **options: Any,
) -> BuildResult:
    """Create a database from files, every stage once, with a recipe inside by which `Database.update` goes on.

    Args:
        tokenizer: of the language model, or "train" to train one on the input.
        encoder: of the default space.
        against: files of test sets, each a test set of its own.
        report: called with every step as it ends.
        options: fields of `IngestParams`; without `source` the first input gives the name.

    Raises:
        ConflictError: when there is another database already. What a step fails with is in the result.
    """
    from retrodb.maintain.update.build import build_recipe, build_result, prepare_build

    context = make_context(path, workers=workers, progress=progress, clock=clock)
    recipe = build_recipe([str(i) for i in inputs], [str(f) for f in against], options)
    prepare_build(context, recipe, InitParams(tokenizer, encoder=encoder))
    database = Database(path, workers=workers, progress=progress, clock=clock)
    return build_result(database.update(report=report), database.stats())


def read_queries(path: Path, *, as_vectors: bool = False) -> list[str] | Float32Array:
    """What to search for, from a file: texts, one a line or as JSON Lines; or vectors (Q, D) from an `.npy` file."""
    from retrodb.stages.search.query_file import read_texts, read_vectors

    return read_vectors(path) if as_vectors else read_texts(path)


def demo(
    folder: str | Path,
    *,
    encoder: str = InitParams.encoder,
    limit: int | None = None,
    steps: int = 100,
    workers: int | None = 1,
    progress: bool = False,
    report: Callable[[DemoStage], None] | None = None,
) -> DemoResult:
    """Build a database in a folder from the documentation of Python's own standard library, every stage once.

    Args:
        encoder: of the default space.
        limit: at most so many documents in the database, in the test set, and chunks to validate on.
        steps: of the validation.
        report: called with every stage as it ends.
    """
    from retrodb.maintain.update.demo import run_demo

    context = make_context(folder, workers=workers, progress=progress)

    def validate() -> dict[str, Any]:
        from retrodb.retro.validate import run_validate

        params = ValidateParams(steps=steps, batch_chunks=16, max_heldout_chunks=limit or 300)
        found = run_validate(context.view(), context.progress, params).report
        return {"bits_per_byte": {name: it.value for name, it in found.bits_per_byte.items()}, "verdict": found.verdict}

    return run_demo(context, Path(folder), encoder=encoder, limit=limit, validate=validate, report=report)
