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

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from retrodb.config import (
    DedupParams,
    IndexParams,
    IngestParams,
    InitParams,
    NearDuplicatesParams,
    NeighboursParams,
    ValidateParams,
    from_mapping,
)
from retrodb.encode.threads import available_cpus, thread_environment
from retrodb.engine.local import LocalEngine
from retrodb.engine.progress import make_progress
from retrodb.stages.context import Context
from retrodb.store import marks
from retrodb.store.lock import advisory_lock
from retrodb.store.snapshots import head_number
from retrodb.store.storage import Storage, open_storage
from retrodb.view.view import SELF, View

if TYPE_CHECKING:
    from retrodb.export.export import ExportResult
    from retrodb.format.arrays import Float32Array
    from retrodb.format.settings import Settings
    from retrodb.maintain.check import CheckResult
    from retrodb.maintain.demo import DemoResult, DemoStage
    from retrodb.maintain.stats import SnapshotInfo, Stats, TestSetInfo
    from retrodb.retro.validate import ValidateResult
    from retrodb.stages.clusters import Duplicate
    from retrodb.stages.dedup import DedupResult
    from retrodb.stages.embed import EmbedResult
    from retrodb.stages.exposure import ExposureResult
    from retrodb.stages.index import IndexResult
    from retrodb.stages.ingest import IngestResult
    from retrodb.stages.leak_report import LeakHit
    from retrodb.stages.near_duplicates import NearDuplicatesResult
    from retrodb.stages.neighbours import NeighboursResult
    from retrodb.stages.queries import QueriesResult
    from retrodb.stages.search import SearchHit
    from retrodb.stages.tokenizer import TokenizerResult
    from retrodb.view.neighbour_table import NeighbourTable
    from retrodb.view.sql import SqlResult

P = TypeVar("P")


class Database:
    """A retrieval database: its stages as methods, each ending in one commit.

    Options of a stage are the fields of its parameter class in `retrodb.config`, given by name.
    """

    def __init__(
        self,
        path: str | Path | Storage,
        *,
        workers: int | None = 1,
        progress: bool = False,
        clock: str | None = None,
    ) -> None:
        """Open a database; use `retrodb.open`.

        Args:
            path: a directory, or a storage.
            workers: processes that run tasks, None for one per core; the result does not depend on it.
            progress: whether to show progress on stderr.
            clock: the time that new runs record, ISO 8601; None reads the machine's clock.

        Raises:
            NotADatabaseError, FormatVersionError, DamagedFileError.
        """
        _spare_threads()
        storage = open_storage(str(path)) if isinstance(path, str | Path) else path
        self._context = Context(storage, LocalEngine(workers or available_cpus()), make_progress(progress), clock)
        head_number(storage)  # the head itself is not read: when it is damaged, older versions still open
        self._context.settings()

    @property
    def path(self) -> str:
        """Where the database lies."""
        return self._context.storage.url

    def view(self, as_of: int | None = None) -> View:
        """The newest version of the database, or an older one, to read from in Python."""
        return self._context.view(as_of)

    # Stages.

    def ingest(
        self,
        inputs: Sequence[str | Path],
        *,
        files_from: Sequence[str | Path] = (),
        dry_run: bool = False,
        **options: Any,
    ) -> IngestResult:
        """Add files to a source. Options: `IngestParams`, of which `source` is required."""
        from retrodb.stages.ingest import run_ingest

        params = _params(IngestParams, options)
        with self._lock(marks.ingest(params.source), "ingest"):
            names, lists = [str(i) for i in inputs], [str(f) for f in files_from]
            result = run_ingest(self._context, names, params, files_from=lists, dry_run=dry_run)
            head = self.view().snapshot
            if not dry_run and (head.names("testset") or head.names("queries")):
                # Imported late: it brings a compiler, which a database without test sets has no use for.
                from retrodb.stages.dedup import screen_new_shards

                screen_new_shards(self._context)
        return result

    def dedup(
        self, against: Sequence[str | Path] = (), *, name: str | None = None, dry_run: bool = False, **options: Any
    ) -> list[DedupResult]:
        """Register a test set and remove what leaks it; without files, apply the registered ones. Options: `DedupParams`."""
        from retrodb.stages.dedup import run_dedup

        with self._lock(marks.dedup(name or "all"), "dedup"):
            return run_dedup(
                self._context, [Path(f) for f in against], _params(DedupParams, options), name=name, dry_run=dry_run
            )

    def near_duplicates(self, *, dry_run: bool = False, **options: Any) -> NearDuplicatesResult:
        """Keep one of documents that are the same but for details. Options: `NearDuplicatesParams`."""
        from retrodb.stages.near_duplicates import run_near_duplicates

        params = _params(NearDuplicatesParams, options)
        with self._lock(marks.near_duplicates(), "dedup"):
            return run_near_duplicates(self._context, params, dry_run=dry_run)

    def duplicates(self, *, as_of: int | None = None) -> list[Duplicate]:
        """The documents that near-duplicate search removed, each with the one that is kept."""
        from retrodb.stages.clusters import read_duplicates

        return read_duplicates(self.view(as_of))

    def leaks(self, testset: str | None = None, *, as_of: int | None = None) -> list[LeakHit]:
        """Who matched whom: the hits that dedup reported, by test set."""
        from retrodb.stages.leak_report import read_leaks

        return read_leaks(self.view(as_of), testset)

    def embed(
        self,
        *,
        space: str | None = None,
        device: str = "auto",
        dtype: str = "auto",
        batch_tokens: int | None = None,
        dry_run: bool = False,
        **options: Any,
    ) -> EmbedResult:
        """Give every live, screened chunk its vector in a space. Options: `EmbedParams`, only for a new space."""
        from retrodb.stages.embed import run_embed
        from retrodb.stages.embed_task import Hardware

        with self._lock(marks.embed(space or "default"), "embed"):
            return run_embed(
                self._context, options, Hardware(device, dtype, batch_tokens), space=space, dry_run=dry_run
            )

    def index(
        self, *, space: str | None = None, retrain: bool = False, dry_run: bool = False, **options: Any
    ) -> IndexResult:
        """Train the codebook of a space, if it has none, and index what is embedded. Options: `IndexParams`."""
        from retrodb.stages.index import run_index

        with self._lock(marks.index(space or "default"), "index"):
            return run_index(
                self._context, _params(IndexParams, options), space=space, retrain=retrain, dry_run=dry_run
            )

    def add_queries(
        self, name: str, files: Sequence[str | Path], *, text_template: str | None = None, dry_run: bool = False
    ) -> QueriesResult:
        """Register documents that want neighbours but are not in the database."""
        from retrodb.stages.queries import run_add_queries

        with self._lock(marks.queries(name), "queries"):
            return run_add_queries(
                self._context, name, [Path(f) for f in files], text_template=text_template, dry_run=dry_run
            )

    def neighbours(
        self,
        *,
        queries: str = SELF,
        space: str | None = None,
        table: str | None = None,
        dry_run: bool = False,
        **options: Any,
    ) -> NeighboursResult:
        """Compute a neighbour table: for every row of a query set its nearest live chunks. Options: `NeighboursParams`."""
        from retrodb.stages.neighbours import run_neighbours

        params = _params(NeighboursParams, options)
        with self._lock(marks.neighbours(table or queries), "neighbours"):
            return run_neighbours(self._context, params, queries=queries, space=space, table=table, dry_run=dry_run)

    def export(
        self,
        out: str | Path,
        *,
        to: str = "parquet",
        table: str | None = None,
        as_of: int | None = None,
        dry_run: bool = False,
    ) -> ExportResult:
        """Write a neighbour table in a trainer's format."""
        from retrodb.export.export import run_export

        return run_export(self._context, Path(out), to=to, table=table, as_of=as_of, dry_run=dry_run)

    def validate(self, *, table: str | None = None, heldout: str | None = None, **options: Any) -> ValidateResult:
        """Train the bundled RETRO model for a bounded time and tell whether retrieval helps. Options: `ValidateParams`.

        Args:
            table: the neighbour table to train with; None is that of the database's own chunks.
            heldout: the table of held-out documents; None is the first of a foreign query set.
        """
        from retrodb.retro.validate import run_validate

        params = _params(ValidateParams, options)
        return run_validate(self.view(), self._context.progress, params, table=table, heldout=heldout)

    # Reading.

    def search(
        self,
        queries: Sequence[str] | Float32Array,
        *,
        k: int = 5,
        space: str | None = None,
        source: str | None = None,
        nprobe: int | None = None,
        as_of: int | None = None,
        device: str = "auto",
    ) -> list[list[SearchHit]]:
        """The nearest live chunks of texts, or of vectors (Q, D) float32; one list of at most k hits for each query."""
        from retrodb.stages.search import run_search

        view = self.view(as_of)
        return run_search(view, queries, k=k, space=space, source=source, nprobe=nprobe, device=device)

    def neighbour_table(self, table: str | None = None, *, as_of: int | None = None) -> NeighbourTable:
        """A neighbour table as arrays, dead neighbours masked."""
        from retrodb.view.neighbour_table import NeighbourTable

        return NeighbourTable(self.view(as_of), table)

    def exposure(self, testset: str, *, table: str | None = None, consumed_samples: int = 0) -> ExposureResult:
        """The rows of a neighbour table that met a test set, the first `consumed_samples` of them counted as seen."""
        from retrodb.stages.exposure import run_exposure

        return run_exposure(self._context, testset, table=table, consumed_samples=consumed_samples)

    def stats(self, *, as_of: int | None = None) -> Stats:
        """Counts, sizes and coverage."""
        from retrodb.maintain.stats import read_stats

        return read_stats(self.view(as_of))

    def snapshots(self) -> list[SnapshotInfo]:
        """Every version of the database, oldest first."""
        from retrodb.maintain.stats import list_snapshots

        return list_snapshots(self._context.storage)

    def testsets(self, *, as_of: int | None = None) -> list[TestSetInfo]:
        """The registered test sets with their hits."""
        from retrodb.maintain.stats import list_testsets

        return list_testsets(self.view(as_of))

    def check(self, *, read_data: bool = False, as_of: int | None = None) -> CheckResult:
        """Look for missing and damaged files: sizes only, or with `read_data` every byte."""
        from retrodb.maintain.check import run_check

        return run_check(self.view(as_of), self._context.progress, read_data=read_data)

    def sql(self, query: str, *, as_of: int | None = None) -> SqlResult:
        """Run a read-only SQL query over the tables `documents`, `chunks`, `shards` and `files`."""
        from retrodb.view.sql import run_sql

        return run_sql(self.view(as_of), query)

    def _lock(self, own: marks.Marks, command: str) -> Any:
        return advisory_lock(self._context.storage, own.lock, command)


def create(path: str | Path | Storage, *, clock: str | None = None, **options: Any) -> Database:
    """Create a database. Options: `InitParams`, of which `tokenizer` is required.

    Raises:
        ConflictError: when there is one already.
    """
    from retrodb.stages.init import run_init

    storage = open_storage(str(path)) if isinstance(path, str | Path) else path
    run_init(Context(storage, clock=clock), _params(InitParams, options))
    return Database(storage, clock=clock)


def plan_create(**options: Any) -> Settings:
    """What `create` would fix for ever with these options; nothing is written."""
    from retrodb.stages.init import plan_init

    return plan_init(_params(InitParams, options))[0]


def open(path: str | Path | Storage, **options: Any) -> Database:
    """Open a database; options are those of `Database`."""
    return Database(path, **options)


def train_tokenizer(
    inputs: Sequence[str | Path], out: str | Path, *, vocab_size: int = 32_000, format: str = "auto"
) -> TokenizerResult:
    """Train a byte-level BPE on the texts of files and write it as a file for `create(tokenizer=...)`."""
    from retrodb.stages.tokenizer import run_train_tokenizer

    return run_train_tokenizer([str(i) for i in inputs], Path(out), vocab_size=vocab_size, format=format)


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
    _spare_threads()
    from retrodb.maintain.demo import run_demo

    context = Context(open_storage(str(folder)), LocalEngine(workers or available_cpus()), make_progress(progress))

    def validate() -> dict[str, Any]:
        from retrodb.retro.validate import run_validate

        params = ValidateParams(steps=steps, batch_chunks=16, max_heldout_chunks=limit or 300)
        found = run_validate(context.view(), context.progress, params).report
        return {"bits_per_byte": {name: it.value for name, it in found.bits_per_byte.items()}, "verdict": found.verdict}

    return run_demo(context, Path(folder), encoder=encoder, limit=limit, validate=validate, report=report)


def _spare_threads() -> None:
    """Settings that torch reads when it is first imported; workers inherit them."""
    for name, value in thread_environment().items():
        os.environ.setdefault(name, value)


def _params(kind: type[P], options: dict[str, Any]) -> P:
    return from_mapping(kind, {k: v for k, v in options.items() if v is not None}, where="options")
