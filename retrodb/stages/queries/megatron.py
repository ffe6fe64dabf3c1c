"""A Megatron training set as packed sequences, in the order in which megatron-core reads its samples.

The order depends on seed, split, number of samples, sequence length and blend, and on the code of megatron-core: documents are
shuffled, repeated over epochs, concatenated, cut, and shuffled again. So megatron-core itself builds it.
"""

from __future__ import annotations

import logging
import warnings
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol

import numpy as np

from retrodb.errors import InputError, MissingDependency, UsageError
from retrodb.format.arrays import AnyArray
from retrodb.format.entries import QueriesEntry
from retrodb.format.json_codec import to_plain_object
from retrodb.stages.queries.known_tokens import KnownTokens
from retrodb.stages.queries.packing import PackedSequence
from retrodb.store.digest import identity, xxh3_file
from retrodb.view.id_list import read_id_lines
from retrodb.view.view import View

SUBSETS = ("train", "valid", "test")
_MAGIC, _HEADER_BYTES = b"MMIDIDX\x00\x00", 34  # magic, u64 version, u8 token type, u64 sequences, u64 document bounds


@dataclass(frozen=True)
class MegatronPacking:
    """Everything that determines Megatron's order of samples. The names are those of its arguments."""

    kind: ClassVar[str] = "megatron"
    prefixes: tuple[str, ...]  # of .bin and .idx files
    weights: tuple[float, ...] | None  # of a blend; None for a single prefix
    seq_length: int  # tokens of a sample
    train_samples: int  # samples that the run asks for
    split: str = "969,30,1"  # of the documents, into train, valid and test
    seed: int = 1234
    subset: str = "train"
    doc_ids: tuple[str, ...] = ()  # for every prefix a file with the name of each of its documents, one per line

    def entry(self, tokenizer: str) -> QueriesEntry:
        """The entry of a query set of these samples, without its content."""
        packing = to_plain_object(self)
        return QueriesEntry(self.kind, seq_length=self.seq_length, tokenizer=tokenizer, megatron=packing)

    def state(self, view: View, known: KnownTokens) -> str:
        """A digest of the files. Of the tokens, which can be terabytes, only their size enters it; they are
        checked when they are read.

        Raises:
            InputError: when a file does not exist.
        """
        del view, known
        for path in [*(f"{prefix}.{end}" for prefix in self.prefixes for end in ("bin", "idx")), *self.doc_ids]:
            if not Path(path).is_file():
                raise InputError(
                    "no such file",
                    where=path,
                    remedy="--megatron takes the path of a .bin and .idx file without its ending.",
                )
        sizes = [Path(f"{prefix}.bin").stat().st_size for prefix in self.prefixes]
        small = [*(f"{prefix}.idx" for prefix in self.prefixes), *self.doc_ids]
        return identity(sizes, [xxh3_file(Path(path)).hex() for path in small])


def parse_blend(blend: str) -> tuple[tuple[str, ...], tuple[float, ...]]:
    """Prefixes and weights of "w1 p1 w2 p2 ...".

    Raises:
        UsageError: for another form.
    """
    words = blend.split()
    try:
        weights = tuple(float(word) for word in words[::2])
    except ValueError:
        weights = ()
    if not words or len(words) % 2 or not weights or min(weights) <= 0:
        raise UsageError(f"'{blend}' is not a blend", remedy="Write: --blend 'WEIGHT PREFIX WEIGHT PREFIX ...'.")
    return tuple(words[1::2]), weights


class MegatronDataset(Protocol):
    """The dataset classes of megatron-core, as far as they are used here."""

    def __len__(self) -> int: ...

    def __getitem__(self, number: int, /) -> Mapping[str, AnyArray]: ...


class MegatronSequences:
    """The samples of megatron-core's GPT dataset."""

    def __init__(self, dataset: MegatronDataset, packing: MegatronPacking) -> None:
        self.dataset, self._packing = dataset, packing
        self._names = [read_names(path) for path in packing.doc_ids]
        if self._names and len(self._names) != len(packing.prefixes):
            raise UsageError(
                f"{len(self._names)} --doc-ids for {len(packing.prefixes)} prefixes", remedy="Give one for each."
            )

    @classmethod
    def open(cls, packing: MegatronPacking, cache: Path) -> MegatronSequences:
        """The samples of a packing.

        Args:
            cache: folder where megatron-core stores their order.

        Raises:
            MissingDependency: when megatron-core is not installed.
            UsageError: for a split without documents.
        """
        return cls(_build(packing, cache), packing)

    def __len__(self) -> int:
        return min(len(self.dataset), self._packing.train_samples)

    def read(self, start: int, stop: int) -> Iterator[PackedSequence]:
        """Samples number `start` up to `stop`, without the last token of each, which is only a target."""
        for number in range(start, stop):
            sample = self.dataset[number]
            documents = np.unique(sample["document_ids"])
            tokens = np.asarray(sample["text"][: self._packing.seq_length], dtype=np.int64)
            prefix = int(sample.get("dataset_id", 0))
            names, file = self._named(prefix, documents.tolist()), f"{self._packing.prefixes[prefix]}.bin"
            place = f"sample {number} of subset {self._packing.subset} (documents {documents[0]} to {documents[-1]})"
            yield PackedSequence(tokens, names, file, place)

    def _named(self, prefix: int, documents: Sequence[int]) -> list[str]:
        if not self._names:
            return []
        names = self._names[prefix]
        if documents[-1] >= len(names):
            raise InputError(
                f"{len(names)} names, but there is a document {documents[-1]}", where=self._packing.doc_ids[prefix]
            )
        return [names[document] for document in documents]


def read_names(path: str) -> list[str]:
    """The name in each line of a list: an id, or source and id with a slash between them; "" for a blank line.

    Raises:
        UsageError, InputError: as `view.id_list.read_id_lines`.
    """
    names = read_id_lines(path)
    pairs = [(name, None) if isinstance(name, str) else (name.doc_id, name.source) for name in names]
    return [doc_id if source is None else f"{source}/{doc_id}" for doc_id, source in pairs]


class _NoTokenizer:
    """Takes the place of a tokenizer: megatron-core only reads these attributes of it."""

    unique_identifiers: ClassVar[OrderedDict[str, str]] = OrderedDict({"class": "retrodb"})
    eod = pad = -1


def _build(packing: MegatronPacking, cache: Path) -> MegatronDataset:
    """megatron-core's own dataset of one subset."""
    logging.getLogger("megatron").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about Apex and Transformer Engine, which do not affect the data
        try:
            from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
            from megatron.core.datasets.retro.query.multi_split_gpt_dataset import (
                MultiSplitGPTDataset,
                MultiSplitGPTDatasetConfig,
            )
        except ImportError as error:
            raise MissingDependency(
                f"megatron-core is needed to build the order of samples ({error})",
                remedy="Run: pip install --no-deps megatron-core==0.15.3.",
            ) from error
    _single_process()
    config = MultiSplitGPTDatasetConfig(
        random_seed=packing.seed,
        sequence_length=packing.seq_length,
        blend=(list(packing.prefixes), list(packing.weights) if packing.weights else None),
        split=packing.split,
        split_preprocessing=packing.split,
        return_document_ids=True,
        path_to_cache=str(cache),
        tokenizer=_NoTokenizer(),
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
    )
    subset = SUBSETS.index(packing.subset)
    config.split_matrix = [bounds if index == subset else None for index, bounds in enumerate(config.split_matrix)]
    if config.split_matrix[subset] is None:
        raise UsageError(f"split '{packing.split}' leaves nothing for {packing.subset}")
    _refuse_empty_subset(packing, config.split_matrix[subset])
    sizes = [packing.train_samples] * len(SUBSETS)
    datasets = BlendedMegatronDatasetBuilder(MultiSplitGPTDataset, sizes, lambda: True, config).build()
    dataset: MegatronDataset = datasets[subset]
    return dataset


def _refuse_empty_subset(packing: MegatronPacking, bounds: tuple[float, float]) -> None:
    """Raises UsageError when the subset has no token of a prefix: megatron-core would repeat it for ever."""
    for prefix in packing.prefixes:
        lengths = sequence_lengths(Path(f"{prefix}.idx"))
        first, end = (round(bound * len(lengths)) for bound in bounds)  # as megatron-core rounds
        if not lengths[first:end].sum():
            what = f"split '{packing.split}' leaves no document of {len(lengths):,} for {packing.subset}"
            raise UsageError(what, where=prefix, remedy=f"Give a --split with a larger part for {packing.subset}.")


def sequence_lengths(path: Path) -> AnyArray:
    """The lengths in tokens, one for every document, that an .idx file of Megatron holds.

    Raises:
        InputError: for another file.
    """
    with path.open("rb") as file:
        header = file.read(_HEADER_BYTES)
    remedy = "--megatron takes the path of a .bin and .idx file without its ending."
    if len(header) < _HEADER_BYTES or not header.startswith(_MAGIC):
        raise InputError("is no index of a Megatron data set", where=str(path), remedy=remedy)
    count = int.from_bytes(header[18:26], "little")
    if path.stat().st_size < _HEADER_BYTES + 4 * count:
        raise InputError(f"has fewer than {count:,} sequences, which its header states", where=str(path), remedy=remedy)
    return np.fromfile(path, np.int32, count, offset=_HEADER_BYTES)


def _single_process() -> None:
    """Initialise torch.distributed with one process, because megatron-core's blends ask for the rank."""
    import torch.distributed

    if not torch.distributed.is_initialized():
        alone = torch.distributed.HashStore()  # type: ignore[attr-defined]
        torch.distributed.init_process_group("gloo", store=alone, rank=0, world_size=1)
