"""The samples of a Megatron project: how many each subset has, and which chunks each consists of.

A row of Megatron's neighbour files belongs to a chunk of a sample, so the files have the order of the trainer's own samples. A
query set of `queries add --megatron` has that order already. The documents of any other set are written as a training set: every
chunk is padded to its full length, so that each chunk of a sample is one row of the table, and megatron-core gives their order.
"""

from __future__ import annotations

import importlib.util
import math
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, cast

import numpy as np

from retrodb.config import ExportParams
from retrodb.errors import MismatchError, MissingDependency, UsageError
from retrodb.export.export_source import ExportSource
from retrodb.export.limits import INT32_MAX, check_count
from retrodb.export.megatron_data import run_sizes, write_index
from retrodb.format.arrays import AnyArray, Int64Array, growing_array
from retrodb.format.entries import QueriesEntry
from retrodb.stages.queries.megatron import SUBSETS, MegatronPacking, MegatronSequences

SAMPLES = "samples"  # prefix of the token files of document tables
SEED = 1234  # Megatron's default
_SAMPLE_TOKENS = 2048  # Borgeaud et al. 2022, section 2: the length of their sequences
_BLOCK_SAMPLES = 1 << 12
_MAX_BATCH = 256  # samples of a step in Megatron's example of RETRO


@dataclass(frozen=True)
class SamplePlan:
    """What a trainer has to be told so that its samples are the rows of the tables."""

    seq_length: int  # tokens of a sample
    seed: int
    split: str  # of the documents, into train, valid and test
    data_path: tuple[str, ...]  # prefix, or weights and prefixes; relative to `data/` unless absolute
    num_samples: Mapping[str, int]  # subset -> samples; 0 for one without a table
    global_batch_size: int
    eval_interval: int  # steps
    eval_iters: int  # steps
    own_data: bool  # whether the export holds the training set
    notes: tuple[str, ...] = field(default=())  # for the user


def project_subsets(source: ExportSource) -> dict[str, ExportSource]:
    """The tables of a project by subset; a single table is that of its query set's subset, or train.

    Raises:
        UsageError: for a project without train, or a set that is of another subset.
        MismatchError: for tables of several spaces.
    """
    subsets = dict(source.subsets) or {str((megatron_packing(source) or {}).get("subset", SUBSETS[0])): source}
    spaces = {name: subset.table.entry.space for name, subset in subsets.items()}
    if len(set(spaces.values())) > 1:
        what = f"the tables are of several spaces: {', '.join(f'{name} of {space}' for name, space in spaces.items())}"
        raise MismatchError(what, remedy="Export tables of one space.")
    for name, subset in subsets.items():
        packing = megatron_packing(subset)
        if packing is not None and packing["subset"] != name:
            what = f"table '{subset.table.name}' is the {packing['subset']} of its training set, not the {name}"
            raise UsageError(what, remedy=f"Give --table {packing['subset']}={subset.table.name}.")
    return subsets


def megatron_packing(source: ExportSource) -> dict[str, object] | None:
    """How a set of Megatron samples was packed; None for any other query set."""
    entry = source.view.snapshot.entry(QueriesEntry, source.table.query_set)
    return dict(entry.megatron) if entry is not None and entry.megatron is not None else None


def plan_samples(subsets: Mapping[str, ExportSource], params: ExportParams) -> SamplePlan:
    """The samples of a project.

    Raises:
        UsageError: for options that no training run can have with these tables.
        MismatchError: for sets of different training sets.
        MissingDependency: without megatron-core, where the order of its samples is needed.
    """
    packings = {name: packing for name, subset in subsets.items() if (packing := megatron_packing(subset)) is not None}
    if not packings:
        return _plan_documents(subsets, params)
    if len(packings) < len(subsets):
        other = min(subsets.keys() - packings.keys())
        what = f"table '{subsets[other].table.name}' has no Megatron samples, the others have"
        raise MismatchError(what, remedy="Export tables of one kind: all of 'retrodb queries add --megatron', or none.")
    return _plan_packed({name: _read_packing(packing) for name, packing in packings.items()}, params)


def _read_packing(values: dict[str, object]) -> MegatronPacking:
    import msgspec

    return msgspec.convert(values, MegatronPacking)


def _plan_packed(packings: Mapping[str, MegatronPacking], params: ExportParams) -> SamplePlan:
    """The samples of a training set that the user has."""
    first_name, first = next(iter(packings.items()))
    for name, packing in packings.items():
        for field_name in ("prefixes", "weights", "seq_length", "split", "seed"):
            one, other = getattr(first, field_name), getattr(packing, field_name)
            if one != other:
                what = f"{first_name} and {name} differ in {field_name}: {one} and {other}"
                raise MismatchError(what, remedy="Add the query sets with the same options.")
    if params.seq_length not in (None, first.seq_length):
        what = f"--seq-length {params.seq_length}, but the samples have {first.seq_length} tokens"
        raise UsageError(what, remedy="Remove --seq-length.")
    num_samples = {name: packings[name].train_samples if name in packings else 0 for name in SUBSETS}
    prefixes = [str(Path(prefix).absolute()) for prefix in first.prefixes]
    data_path = prefixes if first.weights is None else _flat(first.weights, prefixes)
    evaluation = _fixed_evaluation(num_samples, params)
    return SamplePlan(
        seq_length=first.seq_length,
        seed=first.seed,
        split=first.split,
        data_path=tuple(data_path),
        num_samples=num_samples,
        global_batch_size=evaluation.batch,
        eval_interval=evaluation.interval,
        eval_iters=evaluation.iters,
        own_data=False,
        notes=_missing_subsets(first.split, num_samples, evaluation.iters),
    )


def _flat(weights: tuple[float, ...], prefixes: list[str]) -> list[str]:
    return [word for weight, prefix in zip(weights, prefixes, strict=True) for word in (repr(weight), prefix)]


def _missing_subsets(split: str, num_samples: Mapping[str, int], eval_iters: int) -> tuple[str, ...]:
    """A note for a subset that the trainer would build, but that has no table."""
    parts = dict(zip(SUBSETS, [float(part) for part in split.split(",")] + [0.0, 0.0], strict=False))
    missing = [name for name in SUBSETS if parts[name] and not num_samples[name]]
    if not missing or not eval_iters:
        return ()
    return tuple(
        f"the split {split} leaves documents for {name}, which has no table, so Megatron refuses it: export --table {name}=NAME"
        f" as well, or train with a split that leaves {name} nothing"
        for name in missing
    )


@dataclass(frozen=True)
class _Evaluation:
    """The options of a training run that decide how many samples it asks for."""

    batch: int  # samples of a step
    interval: int  # steps
    iters: int  # steps

    def asked(self, train: int) -> dict[str, int]:
        """Samples of each evaluation subset: Megatron-LM, `get_train_valid_test_num_samples`."""
        test = self.iters * self.batch
        return {"valid": (train // self.batch // self.interval + 1) * test, "test": test}


def _fixed_evaluation(num_samples: Mapping[str, int], params: ExportParams) -> _Evaluation:
    """The evaluation with which Megatron asks for exactly these samples, with the largest batch that there is for them."""
    train, valid, test = (num_samples[name] for name in SUBSETS)
    batches = [params.global_batch_size] if params.global_batch_size else _batch_sizes(math.gcd(valid, test), train)
    for batch in batches:
        evaluation = _evaluation(train, valid, test, batch, params)
        asked = evaluation.asked(train)
        wrong = [name for name, count in asked.items() if num_samples[name] and num_samples[name] != count]
        if not wrong:
            return evaluation
    what = (
        f"{wrong[0]} has {num_samples[wrong[0]]:,} samples; Megatron asks for {asked[wrong[0]]:,} with train samples {train:,},"
        f" global batch size {batch}, evaluation interval {evaluation.interval} and {evaluation.iters} evaluation steps"
    )
    remedy = (
        "It wants (train samples // batch // interval + 1) * steps * batch of valid and steps * batch of test: give"
        f" --global-batch-size, --eval-interval and --eval-iters, or run 'retrodb queries add' of {wrong[0]} again with"
        f" {asked[wrong[0]]:,} samples."
    )
    raise UsageError(what, remedy=remedy)


def _evaluation(train: int, valid: int, test: int, batch: int, params: ExportParams) -> _Evaluation:
    steps = train // batch
    rounds = valid // test if valid and test else 1
    interval = params.eval_interval or (steps + 1 if rounds <= 1 else max(1, steps // (rounds - 1)))
    iters = params.eval_iters
    if iters is None:
        iters = test // batch if test else valid // ((steps // interval + 1) * batch)
    return _Evaluation(batch, interval, iters)


def _plan_documents(subsets: Mapping[str, ExportSource], params: ExportParams) -> SamplePlan:
    """The samples of documents that the export itself holds: one epoch of each subset, or what the options ask for."""
    if SUBSETS[0] not in subsets:
        raise UsageError("a Megatron project needs a table of train", remedy="Give --table train=NAME.")
    if importlib.util.find_spec("megatron") is None:
        remedy = "Run: pip install --no-deps megatron-core==0.15.3."
        raise MissingDependency("the order of the samples is megatron-core's own", remedy=remedy)
    num_documents = sum(subset.rows.num_runs for subset in subsets.values())
    remedy = "Export tables of fewer documents, or export with --to arrays."
    check_count("documents of the training set", num_documents, INT32_MAX, "megatron", remedy)
    num_chunks = {name: len(subset.rows) for name, subset in subsets.items()}
    m = next(iter(subsets.values())).chunk_tokens
    seq_length = _seq_length(subsets, params, m)
    capacity = {name: (count * m - 1) // seq_length for name, count in num_chunks.items()}
    for name, count in capacity.items():
        if not count:
            what = f"table '{subsets[name].table.name}' has {num_chunks[name]} chunks, a sample of {seq_length} tokens needs"
            what += f" {seq_length // m + 1}: Megatron's samples have one more token"
            raise UsageError(what, remedy="Give a smaller --seq-length, or a larger table.")
    train, held = capacity["train"], [capacity[name] for name in SUBSETS[1:] if name in capacity]
    batch = params.global_batch_size or _batch_sizes(0, min(capacity.values()))[0]
    if params.global_batch_size and params.eval_iters is None and held and min(held) < batch:
        what = f"a batch of {batch} samples, but a subset has {min(held)}"
        raise UsageError(
            what, remedy="Give a smaller --global-batch-size, or --eval-iters to read samples several times."
        )
    iters = params.eval_iters if params.eval_iters is not None else min(held, default=0) // batch
    interval = params.eval_interval or train // batch + 1
    asked = {"train": train, **_Evaluation(batch, interval, iters).asked(train)}
    return SamplePlan(
        seq_length=seq_length,
        seed=SEED,
        split=",".join(str(subsets[name].rows.num_runs if name in subsets else 0) for name in SUBSETS),
        data_path=(SAMPLES,),
        num_samples={name: asked[name] if name in subsets else 0 for name in SUBSETS},
        global_batch_size=batch,
        eval_interval=interval,
        eval_iters=iters,
        own_data=True,
    )


def _seq_length(subsets: Mapping[str, ExportSource], params: ExportParams, m: int) -> int:
    if params.seq_length is not None:
        if params.seq_length % m:
            what = f"samples of {params.seq_length} tokens are no whole chunks"
            raise UsageError(what, remedy=f"Give a multiple of {m}.")
        return params.seq_length
    longest = min(len(subset.rows) for subset in subsets.values()) - 1  # chunks; one more token than a sample is needed
    limit = max(1, min(_SAMPLE_TOKENS // m, longest))
    return m * (1 << limit.bit_length() - 1)


def _batch_sizes(divided: int, available: int) -> list[int]:
    """The powers of two, from `_MAX_BATCH` down to 1, that divide the one (all divide 0) and are not above the other."""
    powers = [1 << power for power in range(_MAX_BATCH.bit_length() - 1, -1, -1)]
    return [batch for batch in powers if divided % batch == 0 and batch <= max(1, available)]


class _ShuffledDataset(Protocol):
    """The order of megatron-core's `GPTDataset`."""

    document_index: AnyArray  # documents, one after the other over all epochs
    shuffle_index: AnyArray  # which of the samples that are cut from them comes at each place


def write_sample_order(path: Path, subsets: Mapping[str, ExportSource], plan: SamplePlan, subset: str) -> None:
    """Write (num_samples * l,) int64: the position, among the rows of the subset, of every chunk of its samples.

    The samples are in the trainer's order. megatron-core has the order of all documents and samples in memory, also here.
    """
    spans = {name: subsets[name].rows.spans for name in SUBSETS if name in subsets}
    m = subsets[subset].chunk_tokens
    with tempfile.TemporaryDirectory(prefix="retrodb-megatron-") as folder:
        prefix = Path(folder) / SAMPLES
        all_spans = [span for of_subset in spans.values() for span in of_subset]
        write_index(prefix.with_suffix(".idx"), all_spans, m, np.dtype(np.uint16))
        with prefix.with_suffix(".bin").open("wb") as file:
            file.truncate(2 * m * sum(len(span) for span in all_spans))  # the order does not depend on the tokens
        packing = MegatronPacking(
            prefixes=(str(prefix),),
            weights=None,
            seq_length=plan.seq_length,
            train_samples=plan.num_samples[subset],
            split=plan.split,
            seed=plan.seed,
            subset=subset,
        )
        dataset = cast("_ShuffledDataset", MegatronSequences.open(packing, Path(folder) / "order").dataset)
        documents = np.asarray(dataset.document_index, dtype=np.int64)
        samples = np.asarray(dataset.shuffle_index[: plan.num_samples[subset]], dtype=np.int64)
    documents -= sum(subsets[name].rows.num_runs for name in SUBSETS[: SUBSETS.index(subset)] if name in subsets)
    with growing_array(path, np.dtype(np.int64)) as append:
        for chunks in _chunks_of_samples(run_sizes(spans[subset]), documents, samples, plan.seq_length // m):
            append(chunks)


def _chunks_of_samples(
    sizes: Int64Array, documents: Int64Array, samples: Int64Array, chunks_per_sample: int
) -> Iterator[Int64Array]:
    """The chunks of samples, in blocks; samples are cut from the chunks of `documents`, one after the other."""
    of_documents = sizes[documents]
    first_chunk, first_position = np.cumsum(sizes) - sizes, np.cumsum(of_documents) - of_documents
    for start in range(0, len(samples), _BLOCK_SAMPLES):
        block = samples[start : start + _BLOCK_SAMPLES]
        positions = (block[:, None] * chunks_per_sample + np.arange(chunks_per_sample)).ravel()
        number = np.searchsorted(first_position, positions, side="right") - 1
        yield first_chunk[documents[number]] + positions - first_position[number]
