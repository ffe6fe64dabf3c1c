"""Commands that measure the quality of the database."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Unpack

from retrodb.config import RetroTrainParams, ValidateParams
from retrodb.engine.progress import make_progress
from retrodb.facade.base import DatabaseBase, params_of
from retrodb.facade.given_files import given_input, given_output
from retrodb.facade.guard import guarded

if TYPE_CHECKING:
    from retrodb.bench.eval_retrieval import RetrievalResult
    from retrodb.bench.recall import RecallReport
    from retrodb.bench.throughput import ThroughputResult
    from retrodb.options import RetroTrainOptions, ValidateOptions
    from retrodb.retro.compare import CompareResult
    from retrodb.retro.experiment import ValidateResult
    from retrodb.retro.run_leakage import LeakageResult
    from retrodb.retro.run_model import RetroEvalResult, RetroGenerateResult
    from retrodb.retro.run_training import RetroTrainResult


class EvaluationCommands(DatabaseBase):
    """Commands that measure the quality of the database."""

    def leakage(
        self,
        *,
        against: str | Path | None = None,
        queries: str | None = None,
        space: str | None = None,
        k: int = 10,
        text_template: str | None = None,
        device: str = "auto",
        as_of: int | str | None = None,
    ) -> LeakageResult:
        """Measure how many tokens the chunks of a file or query set share with their nearest neighbours.

        Args:
            against: a file with documents.
            queries: instead of a file: name of an embedded query set.
        """
        from retrodb.retro.run_leakage import run_leakage

        self._check_space(space, as_of)
        return run_leakage(
            self.view(as_of),
            against=_path(against),
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
        as_of: int | str | None = None,
    ) -> RetrievalResult:
        """Compute nDCG@10, recall@k and MRR of the documents that a space finds, from relevance judgements.

        Args:
            queries: JSON Lines file with an id and a text per query.
            qrels: file with the judgements.
        """
        from retrodb.bench.eval_retrieval import run_eval_retrieval

        self._check_space(space, as_of)
        return run_eval_retrieval(
            self.view(as_of), given_input(queries), given_input(qrels), k=k, space=space, nprobe=nprobe, device=device
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
        """Measure recall, throughput and latency of search for several numbers of inverted lists.

        Args:
            queries: a file of texts or vectors, or a query set. None takes held-out documents, or a sample of documents
                that is hidden from the search.
            target_recall: store the smallest number of lists that reaches this recall; `search` and `neighbours` use it.
            report: also write the result to this .json, .html or .png file.
        """
        from retrodb.bench.recall import run_bench_recall
        from retrodb.bench.report import writer_of

        self._check_space(space)
        write = writer_of(given_output(report)) if report else None
        result = run_bench_recall(
            self._context, space=space, queries=queries, k=k, target_recall=target_recall, seed=seed
        )
        if write and report:
            write(result, Path(report))
        return result

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
        """Compare two spaces: agreement, recall, retrieval quality, latency and size.

        Args:
            queries, qrels: files with queries and judgements, for the retrieval quality.
            minutes: also train a small RETRO model for this time on a neighbour table of each space.
        """
        from retrodb.retro.compare import run_compare

        for space in (first, second):
            self._check_space(space)
        return run_compare(
            self._context,
            first,
            second,
            k=k,
            queries=_path(queries),
            qrels=_path(qrels),
            minutes=minutes,
            seed=seed,
        )

    def bench_throughput(
        self, *, folder: str | Path | None = None, chunks: int | None = None, device: str = "auto"
    ) -> ThroughputResult:
        """Measure the throughput of every stage on this machine. `update --dry-run` estimates times from the stored rates.

        Args:
            folder: folder for the temporary database.
            chunks: approximate size of the sample.
        """
        from retrodb.bench.throughput import CHUNKS, run_bench_throughput

        return run_bench_throughput(self._context, folder=_path(folder), chunks=chunks or CHUNKS, device=device)

    def validate(
        self,
        *,
        table: str | None = None,
        heldout: str | None = None,
        report: str | Path | None = None,
        device: str = "auto",
        **options: Unpack[ValidateOptions],
    ) -> ValidateResult:
        """Train the bundled RETRO model for a short time, with and without neighbours, and compare the results.

        Args:
            table: neighbour table for training. None is the table of the database's own chunks.
            heldout: neighbour table of held-out documents. None is the first table of another query set.
            report: write the experiment to this HTML file.
        """
        from retrodb.retro.validate import run_validate

        return run_validate(
            self.view(),
            self._context.progress,
            params_of(ValidateParams, options),
            table=table,
            heldout=heldout,
            report=None if report is None else given_output(report),
            device=device,
        )

    def retro_eval(
        self,
        *,
        checkpoint: str | Path,
        table: str | None = None,
        base: str | Path | None = None,
        max_chunks: int = 2_000,
        seed: int = 0,
        device: str = "auto",
    ) -> RetroEvalResult:
        """Compute the bits per byte of a trained model on a neighbour table.

        Args:
            checkpoint: folder of the model.
            base: folder of the base model, for a RETROfit model.
            max_chunks: approximate size of the sample.
        """
        from retrodb.retro.run_model import run_retro_eval
        from retrodb.view.neighbour_table import NeighbourTable

        return run_retro_eval(
            Path(checkpoint),
            NeighbourTable(self.view(), table),
            base=_path(base),
            max_chunks=max_chunks,
            seed=seed,
            device=device,
        )

    def retro_generate(
        self,
        prompt: str,
        *,
        checkpoint: str | Path,
        max_tokens: int = 128,
        temperature: float = 0.8,
        top_k: int = 50,
        without: bool = False,
        space: str | None = None,
        base: str | Path | None = None,
        seed: int = 0,
        device: str = "auto",
    ) -> RetroGenerateResult:
        """Continue a prompt with a trained model that retrieves from this database.

        Args:
            checkpoint: folder of the model.
            temperature: 0 always takes the most likely token.
            top_k: sample from this many most likely tokens.
            without: generate without retrieval.
            base: folder of the base model, for a RETROfit model.
        """
        from retrodb.retro.run_model import run_retro_generate

        self._check_space(space)
        return run_retro_generate(
            Path(checkpoint),
            self.view(),
            prompt,
            max_tokens=max_tokens,
            temperature=temperature,
            top_k=top_k,
            without=without,
            space=space,
            base=_path(base),
            seed=seed,
            device=device,
        )


@guarded
def retro_train(
    *, data: str | Path, out: str | Path, progress: bool = False, **options: Unpack[RetroTrainOptions]
) -> RetroTrainResult:
    """Train a RETRO model on an `arrays` export. After an interruption, the same call continues the training.

    Args:
        data: folder of the export.
        out: folder of the checkpoint.
    """
    from retrodb.retro.run_training import run_retro_train

    return run_retro_train(Path(data), given_output(out), params_of(RetroTrainParams, options), make_progress(progress))


@guarded
def retro_fit(
    *, base: str | Path, data: str | Path, out: str | Path, progress: bool = False, **options: Unpack[RetroTrainOptions]
) -> RetroTrainResult:
    """Train a RETROfit of a causal language model on an `arrays` export. The same call continues an interrupted training.

    Args:
        base: folder of a Hugging Face causal language model. Its weights do not change.
        data: folder of the export.
        out: folder of the checkpoint.
    """
    from retrodb.retro.run_training import run_retro_fit

    params = params_of(RetroTrainParams, options)
    return run_retro_fit(Path(base), Path(data), given_output(out), params, make_progress(progress))


@guarded
def retro_eval(
    *,
    checkpoint: str | Path,
    data: str | Path,
    base: str | Path | None = None,
    max_chunks: int = 2_000,
    seed: int = 0,
    device: str = "auto",
) -> RetroEvalResult:
    """Compute the bits per byte of a trained model on an `arrays` export. Arguments are those of `Database.retro_eval`.

    Args:
        data: folder of the export.
    """
    from retrodb.retro.run_model import run_retro_eval

    return run_retro_eval(
        Path(checkpoint), Path(data), base=_path(base), max_chunks=max_chunks, seed=seed, device=device
    )


def _path(path: str | Path | None) -> Path | None:
    return None if path is None else Path(path)
