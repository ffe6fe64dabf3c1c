"""The interface of encoders: what the embed stage and search need from a model.

Shapes: N passages, Q queries, D dimensions.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeAlias

from retrodb.encode.identity import EncoderIdentity, Provenance
from retrodb.errors import InputError, RetroDBError
from retrodb.format.arrays import Float16Array, Float32Array, Int32Array

if TYPE_CHECKING:
    import pyarrow as pa

Texts: TypeAlias = "Sequence[str] | pa.StringArray | pa.LargeStringArray"


@dataclass(frozen=True)
class EncodedBatch:
    """The vectors of N passages, in the order of the texts."""

    vectors_ND: Float16Array
    num_tokens_N: Int32Array  # tokens that were computed, including special tokens
    num_truncated: int  # passages longer than the maximum of the model, whose end was cut off

    @property
    def num_tokens(self) -> int:
        """Tokens of all passages."""
        return int(self.num_tokens_N.sum())


class NotFiniteError(InputError):
    """A vector has NaN or infinite values. `row` is the first such row of the window."""

    def __init__(self, what: str, row: int) -> None:
        remedy = "Check that the weights are complete, or try 'retrodb embed --dtype float32'."
        super().__init__(what, where=f"row {row} of the window", remedy=remedy)
        self.row = row


class OutOfDeviceMemory(RetroDBError):
    """The device has too little memory for a batch. Smaller batches may fit."""


class Encoder(Protocol):
    """A frozen model that computes vectors of texts."""

    identity: EncoderIdentity

    @property
    def provenance(self) -> Provenance: ...

    def num_flops(self, num_tokens_N: Int32Array) -> float:
        """Floating-point operations of the model for passages of these lengths."""

    def matrix_rate(self) -> float:
        """FLOP/s of a large matrix product on the encoder's device, measured now. 0 for an encoder without products."""

    def encode_passages(self, texts: Texts) -> EncodedBatch:
        """Vectors of one window. Equal texts give equal bytes on the same hardware and versions."""

    def encode_windows(self, text_windows: Iterable[Texts]) -> Iterable[EncodedBatch]:
        """`encode_passages` of each window, in order. The next windows are read and tokenized while the device computes."""

    def encode_queries(self, texts: Texts) -> Float32Array:
        """Vectors (Q, D) of texts as queries: with the query prefix, and the query model if there is one."""
