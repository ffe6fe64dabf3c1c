"""What makes two vectors comparable, and what is only good to know about how they came to be.

`EncoderIdentity` is stored with a space and compared before anything is added to it or searched in it. `Provenance` is shown
and never compared: a database embedded in bf16 on a GPU is searched from a laptop.

Shapes: N passages, Q queries, D dimensions.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from importlib import metadata
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from retrodb.encode.batching import WINDOW_ROWS
from retrodb.errors import InputError, MismatchError, RetroDBError

if TYPE_CHECKING:
    import pyarrow as pa

Texts: TypeAlias = "Sequence[str] | pa.StringArray | pa.LargeStringArray"
Metric = Literal["inner_product", "squared_l2"]
Pooling = Literal["mean", "cls", "max", "mean_sqrt_len"]
PoolingSpan = Literal["all", "content"]


@dataclass(frozen=True)
class EncoderIdentity:
    """Everything that decides where in the space a text comes to lie, and how distances are taken there."""

    kind: Literal["bert", "hashing"]
    dimension: int  # D
    weights: str  # SHA-256 of the safetensors files; the feature specification of a hashing encoder
    config: str = ""  # SHA-256 of the architecture's settings: the weights do not tell the number of heads
    tokenizer: str = ""  # SHA-256 of the tokenizer, padding and truncation left out
    pooling: Pooling = "mean"
    pooling_span: PoolingSpan = "all"  # whether [CLS] and [SEP] are pooled as well
    normalise: bool = False  # to unit length
    query_prefix: str = ""
    passage_prefix: str = ""
    max_length: int = 0  # tokens with the special ones, longer texts are cut off; 0 is no limit
    metric: Metric = "squared_l2"
    storage_dtype: Literal["float16"] = "float16"
    query_model: EncoderIdentity | None = None  # the other tower, where queries have a model of their own (DPR)

    def to_json(self) -> dict[str, Any]:
        """The identity as plain values; `from_json` is the inverse."""
        return asdict(self)

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> EncoderIdentity:
        """Raises MismatchError for a record with fields that this version does not know."""
        unknown = set(record) - {f.name for f in fields(cls)}
        if unknown:
            raise MismatchError(
                f"the encoder was recorded with unknown settings ({', '.join(sorted(unknown))})",
                remedy="Use the version of retrodb that wrote it, or a newer one.",
            )
        query_model = record.get("query_model")
        return cls(**{**record, "query_model": cls.from_json(query_model) if query_model else None})

    def fingerprint(self) -> str:
        """SHA-256 of the canonical JSON form, in hex."""
        return digest_json(self.to_json())

    def difference(self, other: EncoderIdentity) -> list[str]:
        """What differs, one `field: ours, theirs` each; empty when vectors of both can be mixed."""
        ours, theirs = self.to_json(), other.to_json()
        return [f"{name}: {ours[name]!r}, {theirs[name]!r}" for name in ours if ours[name] != theirs[name]]


@dataclass(frozen=True)
class Provenance:
    """How the vectors are made on this machine; shown, never compared."""

    name: str  # as the user gave it
    origin: str  # where the model was found: a folder, the hub's cache, an installed package
    implementation: Literal["lean", "transformers", "hashing"]
    device: str
    compute_dtype: str
    window_rows: int = WINDOW_ROWS  # passages that one call of encode_passages should get
    batch_tokens: int = 0  # token budget of a batch; 0 where there are no batches
    versions: dict[str, str] = field(default_factory=dict)  # library -> version


@dataclass(frozen=True)
class EncodedBatch:
    """The vectors of N passages, in the order of the texts."""

    vectors_ND: npt.NDArray[np.float16]
    num_tokens_N: npt.NDArray[np.int32]  # tokens computed, special ones included
    num_truncated: int  # passages longer than the model's maximum, of which only the beginning was read

    @property
    def num_tokens(self) -> int:
        """Tokens of all passages."""
        return int(self.num_tokens_N.sum())


class NotFiniteError(InputError):
    """A vector has NaN or infinite values; `row` is the first such row of the window."""

    def __init__(self, what: str, row: int) -> None:
        super().__init__(
            what, where=f"row {row} of the window", remedy="Are the weights whole, and does --dtype float32 help?"
        )
        self.row = row


class OutOfDeviceMemory(RetroDBError):
    """The device has no memory for a batch; the same rows in smaller batches may do."""


class Encoder(Protocol):
    """A frozen encoder: the seam between the embed stage and the models."""

    identity: EncoderIdentity

    @property
    def provenance(self) -> Provenance: ...

    def num_flops(self, num_tokens_N: npt.NDArray[np.int32]) -> float:
        """Floating-point operations of the model for passages of these lengths."""

    def matrix_rate(self) -> float:
        """FLOP/s of a large matrix product on the encoder's device, measured now; 0 for an encoder without products."""

    def encode_passages(self, texts: Texts) -> EncodedBatch:
        """Vectors of one window; the same texts give the same bytes on the same hardware and versions."""

    def encode_windows(self, text_windows: Iterable[Texts]) -> Iterable[EncodedBatch]:
        """`encode_passages` of each window, in order, with reading and tokenizing ahead of the device."""

    def encode_queries(self, texts: Texts) -> npt.NDArray[np.float32]:
        """Vectors (Q, D) of the texts as queries: with the query prefix, and the query model where there is one."""


def digest_json(value: Any) -> str:
    """SHA-256 of a JSON value in one canonical form, in hex."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def library_versions(*names: str) -> dict[str, str]:
    """The installed versions of the named distributions."""
    return {name: metadata.version(name) for name in names}
