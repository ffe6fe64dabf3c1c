"""Packed sequences: what the packings of trainers have in common."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from retrodb.format.arrays import Int64Array


@dataclass(frozen=True)
class PackedSequence:
    """One sequence of a trainer."""

    tokens: Int64Array  # at most the sequence length
    documents: Sequence[str]  # `source/id` of the documents in it, as far as their names are known
    file: str  # that the tokens come from
    place: str  # of the sequence in this file, such as "row 3"


class Sequences(Protocol):
    """Sequences by number, in the order of the trainer."""

    def __len__(self) -> int: ...

    def read(self, start: int, stop: int) -> Iterator[PackedSequence]:
        """Sequences number `start` up to `stop`."""
        ...
