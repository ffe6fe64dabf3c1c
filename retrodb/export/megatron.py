"""Export for Megatron-LM's RETRO: a project folder that `megatron.core.datasets.retro` of megatron-core 0.8 to 0.15 reads.

    config.json                       what `load_retro_args` of Megatron-LM and `load_retro_config` of NeMo read
    tokenizer/                        the tokenizer as a folder of Hugging Face
    data/db-<span>.{bin,idx}          the database's tokens; a sequence is a run of chunks, each padded to its full length
    data/samples.{bin,idx}            the documents that are trained on, unless the tables are of a training set of Megatron
    db/indexed_dataset_infos.json     the data files of the database in their order
    db/merged/train.hdf5              chunks (N, 5) uint32: data file, sequence, first token, end, tokens
    query/<name>/<start>-<end>.hdf5   neighbors (100,000, K) int64: rows of `chunks`, -1 padded; a row for every chunk of a sample

The reader takes the row after a neighbour as its continuation, whatever document it belongs to, and -1 as the last row. So a row
without tokens, which it reads as padding, comes before the first run and after every run.

A running reader has the data files mapped and opens the neighbours' files for every sample, so deletions reach it: a refresh
overwrites the tokens of deleted chunks with the end-of-document token in the mapped file, and replaces the neighbours' files. The
name of their folder hashes the positions of all chunks: after an export with other positions a running reader finds no file, and
never rows with another meaning. On network filesystems a mapping may be late.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from types import ModuleType

import numpy as np
import orjson

from retrodb.corpus.special_tokens import SpecialIds, special_ids
from retrodb.errors import MissingDependency, UsageError
from retrodb.export.arrays import array_file
from retrodb.export.export_file import (
    ExportFile,
    FilePiece,
    FileRange,
    fixed_file,
    json_file,
    whole_file,
    write_ranges,
)
from retrodb.export.export_source import ExportSource, arrays_digest
from retrodb.export.megatron_data import SpanTokens, data_files
from retrodb.export.megatron_samples import (
    SAMPLES,
    SamplePlan,
    plan_samples,
    project_subsets,
    write_sample_order,
)
from retrodb.export.padding import token_dtype
from retrodb.export.positions import BLOCK_CHUNKS, PositionSpan
from retrodb.format.arrays import AnyArray, Int64Array, map_array
from retrodb.stages.queries.megatron import SUBSETS
from retrodb.store.digest import identity

BLOCK_ROWS = 100_000  # rows of a neighbours' file (retro_block_size)
MIN_NEIGHBOURS = 20  # as many as Megatron itself keeps: a trainer may read more than there are, and finds padding
NO_NEIGHBOURS = "none"  # folder of a subset without samples: Megatron counts its files, and wants it to be there


@dataclass(frozen=True)
class MegatronProject:
    """The tables of a project, and their samples."""

    source: ExportSource  # of the database's chunks
    subsets: Mapping[str, ExportSource]
    plan: SamplePlan

    @classmethod
    def of(cls, source: ExportSource) -> MegatronProject:
        """The project of an export. Raises what `project_subsets` and `plan_samples` raise."""
        subsets = project_subsets(source)
        return cls(source, subsets, plan_samples(subsets, source.params))

    @cached_property
    def special(self) -> SpecialIds:
        """The tokenizer's special ids."""
        return special_ids(self.source.view.storage.read("tokenizer.json"), self.source.settings.vocab_size)

    def neighbour_folder(self, subset: str) -> str:
        """The folder of a subset below `query/`."""
        if subset not in self.subsets:
            return NO_NEIGHBOURS
        plan, chunks = self.plan, self.source.chunks
        order = [self.subsets[subset].rows.digest, plan.seq_length, plan.split, plan.num_samples[subset]]
        return f"{subset}-{self.subsets[subset].table.name}-{identity([chunks.digest, *order])[:16]}"


def megatron_files(source: ExportSource) -> list[ExportFile]:
    """The files of the export.

    Raises:
        UsageError: when there is no chunk, and for tables or options that no training run can have.
        MismatchError: for tables that do not belong together.
        MissingDependency: without h5py, or without megatron-core where its order is needed.
    """
    _h5py()
    if not len(source.chunks):
        raise UsageError("the database has no live chunk to export")
    project = MegatronProject.of(source)
    return [
        *_data_files(project),
        *_tokenizer_files(project),
        json_file("db/indexed_dataset_infos.json", _infos(source)),
        _merged(source, "train", source.chunks.spans),
        _merged(source, "valid", []),
        _merged(source, "sampled", []),
        *(file for subset in SUBSETS for file in _neighbour_files(project, subset)),
        json_file("config.json", _config(project)),
    ]


@dataclass(frozen=True)
class ProjectCounts:
    """What a project has."""

    subsets: tuple[tuple[str, str, int, int], ...]  # subset, table, chunks of its query set, samples
    notes: tuple[str, ...]


def megatron_counts(source: ExportSource) -> ProjectCounts:
    """The rows and samples of each subset, and what to tell the trainer, which does not read it from `config.json`."""
    project = MegatronProject.of(source)
    plan = project.plan
    counts = [
        (name, table.table.name, len(table.rows), plan.num_samples[name]) for name, table in project.subsets.items()
    ]
    split = f"train with Megatron's split {plan.split}, which it does not read from config.json"
    batch = (
        f"it does read a global batch size of {plan.global_batch_size}, an evaluation interval of {plan.eval_interval} and"
        f" {plan.eval_iters} evaluation steps"
    )
    return ProjectCounts(tuple(counts), (split, batch, *plan.notes))


def _data_files(project: MegatronProject) -> Iterator[ExportFile]:
    source, m, end = project.source, project.source.chunk_tokens, project.special.end
    dtype = token_dtype(max(end, source.settings.vocab_size - 1))
    for number, span in enumerate(source.chunks.spans):
        yield from data_files(
            _prefix(number), [SpanTokens(source.database, span)], chunk_tokens=m, pad=end, dtype=dtype
        )
    if project.plan.own_data:
        tables = [project.subsets[name] for name in SUBSETS if name in project.subsets]
        parts = [SpanTokens(table.queries, span) for table in tables for span in table.rows.spans]
        yield from data_files(SAMPLES, parts, chunk_tokens=m, pad=end, dtype=dtype)


def _tokenizer_files(project: MegatronProject) -> Iterator[ExportFile]:
    """A folder that transformers' `AutoTokenizer` reads, with the export's end-of-document token as its own."""
    content = project.source.view.storage.read("tokenizer.json")
    added = orjson.loads(content).get("added_tokens") or ()
    names = {token["id"]: token["content"] for token in added}
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": names.get(project.special.end, "<|endoftext|>"),
        "clean_up_tokenization_spaces": False,
    }
    yield fixed_file("tokenizer/tokenizer.json", content)
    yield json_file("tokenizer/tokenizer_config.json", config)


def _merged(source: ExportSource, name: str, spans: Sequence[PositionSpan]) -> ExportFile:
    """A file of chunk rows. It never changes, because positions never change."""
    num_rows = 2 + sum(len(span) + span.record.num_runs for span in spans) if spans else 0
    num_runs = sum(span.record.num_runs for span in spans)

    def piece(number: int, span: PositionSpan) -> FilePiece:
        first_row = 1 + span.first + span.first_run
        of_span = len(span) + span.record.num_runs
        sizes = {"chunks": 20 * of_span, "doc_offsets": 24 * span.record.num_runs}

        def write(path: Path) -> str:
            with _h5py().File(path, "r") as file:
                chunks, offsets = (file[dataset].id.get_offset() for dataset in sizes)
            of_chunks = FileRange(chunks + 20 * first_row, sizes["chunks"], lambda: [_chunk_rows(source, number, span)])
            of_runs = FileRange(
                offsets + 24 * span.first_run, sizes["doc_offsets"], lambda: [_run_ends(number, span, first_row)]
            )
            return write_ranges(path, [of_chunks, of_runs])

        return FilePiece(sum(sizes.values()), lambda: identity(number, span.first, span.record.digest), write)

    of_head = FilePiece(4096, lambda: identity(name, num_rows), lambda _: "")
    pieces = [of_head, *(piece(number, span) for number, span in enumerate(spans))]
    return ExportFile(f"db/merged/{name}.hdf5", pieces, partial(_prepare_merged, num_rows=num_rows, num_runs=num_runs))


def _prepare_merged(path: Path, num_rows: int, num_runs: int) -> None:
    """Make a file of chunk rows in which every dataset has all of its bytes in one range, where pieces are written."""
    h5py = _h5py()
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file.create_dataset("n_written", data=np.array([num_rows], dtype=np.uint64))
        for name, shape, dtype in (("chunks", (num_rows, 5), "uint32"), ("doc_offsets", (num_runs, 3), "uint64")):
            if not num_rows:
                file.create_dataset(name, shape, dtype=dtype)
                continue
            properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
            properties.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
            properties.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
            properties.set_obj_track_times(False)
            kind, space = h5py.h5t.py_create(np.dtype(dtype)), h5py.h5s.create_simple(shape)
            h5py.h5d.create(file.id, name.encode(), kind, space, properties)


def _run_ends(number: int, span: PositionSpan, first_row: int) -> AnyArray:
    """(R, 3) data file, sequence, and one past the last row of every run of a span."""
    ends = first_row + np.cumsum(span.run_sizes + 1)
    return np.stack([np.full(len(ends), number), np.arange(len(ends)), ends], axis=1).astype(np.uint64)


def _chunk_rows(source: ExportSource, number: int, span: PositionSpan) -> AnyArray:
    """Rows of `chunks` for a span: data file, sequence, first token, end, tokens. An empty row ends every run."""
    starts = span.run_starts
    position = np.arange(len(span))
    run = np.searchsorted(starts, position, side="right") - 1
    first = (position - starts[run]) * source.chunk_tokens
    lengths = np.concatenate([source.database.lengths(ids) for ids in span.blocks()])
    chunks = np.stack([np.full(len(span), number), run, first, first + lengths, lengths], axis=1)
    ends = span.run_sizes * source.chunk_tokens
    empty = np.stack([np.full(len(starts), number), np.arange(len(starts)), ends, ends, 0 * ends], axis=1)
    return np.insert(chunks, np.append(starts[1:], len(span)), empty, axis=0).astype(np.uint32)


def _neighbour_files(project: MegatronProject, subset: str) -> Iterator[ExportFile]:
    folder = project.neighbour_folder(subset)
    if subset not in project.subsets:
        yield fixed_file(f"query/{folder}/README", b"No neighbours: no table was exported for this subset.\n")
        return
    source, plan = project.subsets[subset], project.plan
    rows = SampleRows(project, subset)
    total = plan.num_samples[subset] * (plan.seq_length // source.chunk_tokens) if plan.own_data else len(source.rows)
    digits = math.ceil(math.log10(total)) + 1 if total else 1
    width = max(source.k, MIN_NEIGHBOURS)
    for start in range(0, total, BLOCK_ROWS):
        stop = min(total, start + BLOCK_ROWS)
        name = f"{start:0{digits}d}-{stop:0{digits}d}.hdf5"
        yield whole_file(
            f"query/{folder}/{name}",
            4096 + (stop - start) * width * 8,
            partial(_blocks_digest, partial(rows.blocks, start, stop)),
            partial(_write_neighbours, partial(rows.blocks, start, stop), (stop - start, width)),
            must_reopen=False,
        )


def _blocks_digest(blocks: Callable[[], Iterator[Int64Array]]) -> str:
    return arrays_digest(blocks())


class SampleRows:
    """(Q, K) rows of `chunks` for the chunks of a subset's samples. An empty row comes first, and another after every run."""

    def __init__(self, project: MegatronProject, subset: str) -> None:
        self._project, self._subset = project, subset
        self._source = project.subsets[subset]

    def of_ids(self, ids: Int64Array) -> Int64Array:
        """Those of rows of the table."""
        positions = self._source.neighbours(ids)
        return np.where(positions >= 0, positions + self._source.chunks.runs_until(positions), -1)

    def blocks(self, start: int, stop: int) -> Iterator[Int64Array]:
        """Those of the chunks of samples number `start` up to `stop`."""
        for first in range(start, stop, BLOCK_CHUNKS):
            last = min(stop, first + BLOCK_CHUNKS)
            if self._project.plan.own_data:
                yield self._by_position[self._order[first:last]]
            else:
                yield self.of_ids(self._source.rows.ids(first, last))

    def scratch(self) -> Iterator[ExportFile]:
        """The files for `ExportSource.scratch` that samples are read from, which need the rows in any order."""
        project, subset, source = self._project, self._subset, self._source
        write = partial(write_sample_order, subsets=project.subsets, plan=project.plan, subset=subset)
        size = 8 * project.plan.num_samples[subset] * (project.plan.seq_length // source.chunk_tokens)
        yield whole_file(self._order_file, size, lambda: "order", write)
        dtype = np.dtype(np.int64)
        yield array_file(self._rows_file, source.rows, dtype, (source.k,), lambda _: "rows", self.of_ids)

    @property
    def _order_file(self) -> str:
        return f"order-{self._subset}.npy"

    @property
    def _rows_file(self) -> str:
        return f"rows-{self._subset}.npy"

    @cached_property
    def _order(self) -> AnyArray:
        return map_array(self._source.scratch / self._order_file)

    @cached_property
    def _by_position(self) -> AnyArray:
        return map_array(self._source.scratch / self._rows_file)


def megatron_scratch(source: ExportSource) -> list[ExportFile]:
    """The files that the neighbours of a project are written from."""
    project = MegatronProject.of(source)
    subsets = project.subsets if project.plan.own_data else ()
    return [file for subset in subsets for file in SampleRows(project, subset).scratch()]


def _write_neighbours(blocks: Callable[[], Iterator[Int64Array]], shape: tuple[int, int], path: Path) -> None:
    with _h5py().File(path, "w") as file:
        neighbours = file.create_dataset("neighbors", shape, dtype="int64", fillvalue=-1)
        row = 0
        for block in blocks():
            neighbours[row : row + len(block), : block.shape[1]] = block
            row += len(block)


def _infos(source: ExportSource) -> list[dict[str, object]]:
    spans = source.chunks.spans
    return [
        {
            "ratio": len(span) / len(source.chunks),
            "prefix": _prefix(number),
            "n_docs": span.record.num_runs,
            "n_docs_train": span.record.num_runs,
            "n_chunks": len(span) + span.record.num_runs,
            "n_chunks_train": len(span) + span.record.num_runs,
            "n_chunks_invalid": 0,
            "n_chunks_sampled": 0,
        }
        for number, span in enumerate(spans)
    ]


def _config(project: MegatronProject) -> dict[str, object]:
    """What a trainer reads about the preprocessing. It takes these values in the place of its own arguments.

    Null is left for Megatron's own Bert, which embedded nothing here, for vocabulary files of other tokenizer types, and for a
    cache folder that was not given: Megatron then keeps its indices next to the data files.
    """
    plan = project.plan
    return {
        "retro_block_size": BLOCK_ROWS,
        "retro_gpt_chunk_length": project.source.chunk_tokens,
        "retro_gpt_seed": plan.seed,
        "retro_gpt_data_path": plan.data_path,
        "retro_gpt_data_cache_path": project.source.params.data_cache_path,
        "retro_gpt_split": plan.split,
        "retro_gpt_train_samples": plan.num_samples["train"],
        "retro_gpt_valid_samples": plan.num_samples["valid"],
        "retro_gpt_test_samples": plan.num_samples["test"],
        "retro_gpt_eval_interval": plan.eval_interval,
        "retro_gpt_eval_iters": plan.eval_iters,
        "retro_gpt_tokenizer_type": "HuggingFaceTokenizer",
        "retro_gpt_tokenizer_model": "tokenizer",
        "retro_gpt_vocab_file": None,
        "retro_gpt_merge_file": None,
        "retro_gpt_seq_length": plan.seq_length,
        "retro_gpt_global_batch_size": plan.global_batch_size,
        "retro_gpt_eod_token": project.special.end,
        "retro_bert_tokenizer_type": None,
        "retro_bert_vocab_file": None,
        "retro_neighbor_dirs": {subset: project.neighbour_folder(subset) for subset in SUBSETS},
    }


def _prefix(number: int) -> str:
    return f"db-{number:05d}"


def _h5py() -> ModuleType:
    try:
        return importlib.import_module("h5py")
    except ImportError as error:
        raise MissingDependency(
            "the megatron format needs h5py", remedy="Run: pip install 'retrodb[megatron]'."
        ) from error
