"""A Megatron training set as packed sequences, in the order in which megatron-core itself gives its samples.

The order depends on seed, split, number of samples, sequence length and blend, and on megatron-core's own code: documents are
shuffled, repeated over epochs, concatenated, cut, and shuffled again. So it is built by megatron-core, never imitated.
"""

from __future__ import annotations

import logging
import warnings
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from retrodb.errors import InputError, MissingDependency, UsageError
from retrodb.stages.queries.packing import PackedSequence
from retrodb.store.digest import identity, xxh3_file
from retrodb.view.view import View

SUBSETS = ("train", "valid", "test")


@dataclass(frozen=True)
class MegatronPacking:
    """What Megatron's sample order follows from; the names are those of its arguments."""

    kind: ClassVar[str] = "megatron"
    prefixes: tuple[str, ...]  # of .bin and .idx files
    weights: tuple[float, ...] | None  # of a blend; None for a single prefix
    seq_length: int  # tokens of a sample
    train_samples: int  # samples that the run asks for
    split: str = "969,30,1"  # of the documents, into train, valid and test
    seed: int = 1234
    subset: str = "train"
    doc_ids: tuple[str, ...] = ()  # a file for every prefix: the name of each of its documents, one a line

    def to_json(self) -> dict[str, Any]:
        """Plain values, the arguments of this class."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> MegatronPacking:
        """The packing that `to_json` described."""
        lists: dict[str, Any] = {key: tuple(value) for key, value in values.items() if isinstance(value, list)}
        return cls(**{**values, **lists})

    def state(self, view: View) -> str:
        """A digest of the files; of the tokens, which may be terabytes, their size.

        Raises:
            InputError: when one is not there.
        """
        del view
        for path in [*(f"{prefix}.{end}" for prefix in self.prefixes for end in ("bin", "idx")), *self.doc_ids]:
            if not Path(path).is_file():
                raise InputError(
                    "no such file", where=path, remedy="--megatron names a .bin and .idx without their endings."
                )
        sizes = [Path(f"{prefix}.bin").stat().st_size for prefix in self.prefixes]
        small = [*(f"{prefix}.idx" for prefix in self.prefixes), *self.doc_ids]
        return identity(sizes, [xxh3_file(Path(path)).hex() for path in small])


def parse_blend(blend: str) -> tuple[tuple[str, ...], tuple[float, ...]]:
    """Prefixes and weights of "w1 p1 w2 p2 ...".

    Raises:
        UsageError: for anything else.
    """
    words = blend.split()
    try:
        weights = tuple(float(word) for word in words[::2])
    except ValueError:
        weights = ()
    if not words or len(words) % 2 or not weights or min(weights) <= 0:
        raise UsageError(f"'{blend}' is no blend", remedy="Write: --blend 'WEIGHT PREFIX WEIGHT PREFIX ...'.")
    return tuple(words[1::2]), weights


class MegatronSequences:
    """The samples of megatron-core's GPT dataset."""

    def __init__(self, dataset: Any, packing: MegatronPacking) -> None:
        self.dataset, self._packing = dataset, packing
        self._names = [_names(Path(path)) for path in packing.doc_ids]
        if self._names and len(self._names) != len(packing.prefixes):
            raise UsageError(
                f"{len(self._names)} --doc-ids for {len(packing.prefixes)} prefixes", remedy="Give one for each."
            )

    @classmethod
    def open(cls, packing: MegatronPacking, cache: Path) -> MegatronSequences:
        """The samples of a packing; their order is kept in the folder `cache`.

        Raises:
            MissingDependency: without megatron-core.
            UsageError: for a split without documents.
        """
        return cls(_build(packing, cache), packing)

    def __len__(self) -> int:
        return min(len(self.dataset), self._packing.train_samples)

    def read(self, start: int, stop: int) -> Iterator[PackedSequence]:
        """Samples number `start` up to `stop`; a sample's last token, which is only predicted, is of no chunk."""
        for number in range(start, stop):
            sample = self.dataset[number]
            documents = np.unique(sample["document_ids"])
            tokens = np.asarray(sample["text"][: self._packing.seq_length], dtype=np.int64)
            yield PackedSequence(tokens, self._named(int(sample.get("dataset_id", 0)), documents.tolist()))

    def _named(self, prefix: int, documents: Sequence[int]) -> list[str]:
        if not self._names:
            return []
        names = self._names[prefix]
        if documents[-1] >= len(names):
            raise InputError(
                f"{len(names)} names, but there is a document {documents[-1]}", where=self._packing.doc_ids[prefix]
            )
        return [names[document] for document in documents]


def _names(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


class _NoTokenizer:
    """Stands where megatron-core wants a tokenizer: it is asked for nothing but who it is."""

    unique_identifiers: ClassVar[OrderedDict[str, str]] = OrderedDict({"class": "retrodb"})
    eod = pad = -1


def _build(packing: MegatronPacking, cache: Path) -> Any:
    """megatron-core's own dataset of one subset."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about Apex and Transformer Engine, which have nothing to do with data
        try:
            from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
            from megatron.core.datasets.retro.query.multi_split_gpt_dataset import (
                MultiSplitGPTDataset,
                MultiSplitGPTDatasetConfig,
            )
        except ImportError as error:
            raise MissingDependency(
                f"the sample order is megatron-core's own ({error})",
                remedy="Run: pip install --no-deps megatron-core==0.15.3.",
            ) from error
    logging.getLogger("megatron").setLevel(logging.ERROR)
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
    wanted = SUBSETS.index(packing.subset)
    config.split_matrix = [own if place == wanted else None for place, own in enumerate(config.split_matrix)]
    if config.split_matrix[wanted] is None:
        raise UsageError(f"split '{packing.split}' leaves nothing for {packing.subset}")
    sizes = [packing.train_samples] * len(SUBSETS)
    return BlendedMegatronDatasetBuilder(MultiSplitGPTDataset, sizes, lambda: True, config).build()[wanted]


def _single_process() -> None:
    """megatron-core's blends ask who they are among the processes: the only one."""
    import torch.distributed

    if not torch.distributed.is_initialized():
        alone = torch.distributed.HashStore()  # type: ignore[attr-defined]
        torch.distributed.init_process_group("gloo", store=alone, rank=0, world_size=1)
