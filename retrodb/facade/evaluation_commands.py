"""Commands that show whether the database helps."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from retrodb.config import RetroTrainParams, ValidateParams
from retrodb.engine.progress import make_progress
from retrodb.facade.base import DatabaseBase, params_of

if TYPE_CHECKING:
    from retrodb.bench.eval_retrieval import RetrievalResult
    from retrodb.bench.recall import RecallReport
    from retrodb.bench.throughput import ThroughputResult
    from retrodb.retro.compare import CompareResult
    from retrodb.retro.experiment import ValidateResult
    from retrodb.retro.run_leakage import LeakageResult
    from retrodb.retro.run_model import RetroEvalResult, RetroGenerateResult
    from retrodb.retro.run_training import RetroTrainResult


class EvaluationCommands(DatabaseBase):
    """Commands that show whether the database helps."""

    def leakage(
        self,
        *,
        against: str | Path | None = None,
        queries: str | None = None,
        space: str | None = None,
        k: int = 10,
        text_template: str | None = None,
        device: str = "auto",
        as_of: int | None = None,
    ) -> LeakageResult:
        """How much of a file's chunks, or of a query set's, their nearest chunks give away word for word."""
        from retrodb.retro.run_leakage import run_leakage

        file = None if against is None else Path(against)
        return run_leakage(
            self.view(as_of),
            against=file,
            queries=queries,
            space=space,
            k=k,
            text_template=text_template,
            device=device,
        )

    def eval_retrieval(
        self,
        *,
        queries: str | Path,
        qrels: str | Path,
        k: int = 100,
        space: str | None = None,
        nprobe: int | None = None,
        device: str = "auto",
        as_of: int | None = None,
    ) -> RetrievalResult:
        """nDCG@10, recall@k and MRR of a space's ranking of documents against judgements."""
        from retrodb.bench.eval_retrieval import run_eval_retrieval

        return run_eval_retrieval(
            self.view(as_of), Path(queries), Path(qrels), k=k, space=space, nprobe=nprobe, device=device
        )

    def bench_recall(
        self,
        *,
        space: str | None = None,
        queries: str | None = None,
        k: int = 10,
        target_recall: float | None = None,
        seed: int = 0,
        report: str | Path | None = None,
    ) -> RecallReport:
        """Measure recall against lists, throughput and latency, on queries that the database cannot answer with themselves.

        Args:
            queries: a file of texts or vectors, or a query set; None: held-out documents, or own ones, hidden meanwhile.
            target_recall: stores the fewest lists that reach it, for `search` and `neighbours`.
            report: a file to write too: .json, .html or .png.
        """
        from retrodb.bench.recall import run_bench_recall
        from retrodb.bench.report import writer_of

        write = writer_of(Path(report)) if report else None
        found = run_bench_recall(
            self._context, space=space, queries=queries, k=k, target_recall=target_recall, seed=seed
        )
        if write and report:
            write(found, Path(report))
        return found

    def compare(
        self,
        first: str,
        second: str,
        *,
        k: int = 10,
        queries: str | Path | None = None,
        qrels: str | Path | None = None,
        minutes: float | None = None,
        seed: int = 0,
    ) -> CompareResult:
        """Two spaces side by side: agreement, recall, retrieval quality, latency, bytes, and validation."""
        from retrodb.retro.compare import run_compare

        judged = [None if file is None else Path(file) for file in (queries, qrels)]
        return run_compare(
            self._context, first, second, k=k, queries=judged[0], qrels=judged[1], minutes=minutes, seed=seed
        )

    def bench_throughput(
        self, *, folder: str | Path | None = None, chunks: int | None = None, device: str = "auto"
    ) -> ThroughputResult:
        """Measure every stage's rate on this machine, with this tokenizer and encoder, and keep the rates for planning."""
        from retrodb.bench.throughput import CHUNKS, run_bench_throughput

        where = Path(folder) if folder else None
        return run_bench_throughput(self._context, folder=where, chunks=chunks or CHUNKS, device=device)

    def validate(
        self,
        *,
        table: str | None = None,
        heldout: str | None = None,
        report: str | Path | None = None,
        device: str = "auto",
        **options: Any,
    ) -> ValidateResult:
        """Train the bundled RETRO model for a bounded time and tell whether retrieval helps. Options: `ValidateParams`.

        Args:
            table: the neighbour table to train with; None is that of the database's own chunks.
            heldout: the table of held-out documents; None is the first of a foreign query set.
            report: where to write the experiment as an HTML page.
        """
        from retrodb.retro.validate import run_validate

        return run_validate(
            self.view(),
            self._context.progress,
            params_of(ValidateParams, options),
            table=table,
            heldout=heldout,
            report=None if report is None else Path(report),
            device=device,
        )

    def retro_eval(self, *, checkpoint: str | Path, table: str | None = None, **options: Any) -> RetroEvalResult:
        """Bits per byte of a trained model on a neighbour table. Options: those of `run_retro_eval`."""
        from retrodb.retro.run_model import run_retro_eval
        from retrodb.view.neighbour_table import NeighbourTable

        return run_retro_eval(Path(checkpoint), NeighbourTable(self.view(), table), **_paths(options, "base"))

    def retro_generate(self, prompt: str, *, checkpoint: str | Path, **options: Any) -> RetroGenerateResult:
        """Text by a trained model that retrieves from this database. Options: those of `run_retro_generate`."""
        from retrodb.retro.run_model import run_retro_generate

        return run_retro_generate(Path(checkpoint), self.view(), prompt, **_paths(options, "base"))


def retro_train(*, data: str | Path, out: str | Path, progress: bool = False, **options: Any) -> RetroTrainResult:
    """Train a RETRO model on an `arrays` export; killed, the same call continues. Options: `RetroTrainParams`."""
    from retrodb.retro.run_training import run_retro_train

    return run_retro_train(Path(data), Path(out), params_of(RetroTrainParams, options), make_progress(progress))


def retro_fit(
    *, base: str | Path, data: str | Path, out: str | Path, progress: bool = False, **options: Any
) -> RetroTrainResult:
    """RETROfit a causal language model of transformers on an `arrays` export. Options: `RetroTrainParams`."""
    from retrodb.retro.run_training import run_retro_fit

    params = params_of(RetroTrainParams, options)
    return run_retro_fit(Path(base), Path(data), Path(out), params, make_progress(progress))


def retro_eval(*, checkpoint: str | Path, data: str | Path, **options: Any) -> RetroEvalResult:
    """Bits per byte of a trained model on an `arrays` export. Options: those of `run_retro_eval`."""
    from retrodb.retro.run_model import run_retro_eval

    return run_retro_eval(Path(checkpoint), Path(data), **_paths(options, "base"))


def _paths(options: dict[str, Any], *names: str) -> dict[str, Any]:
    return options | {name: Path(options[name]) for name in names if options.get(name) is not None}
