"""What makes two vectors comparable, and how they were computed.

`EncoderIdentity` is stored with a space. It is compared before vectors are added to the space or the space is searched.
`Provenance` is shown and never compared: a database that was embedded in bf16 on a GPU can be searched on a laptop.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from importlib import metadata
from typing import Literal

from retrodb.encode.batching import WINDOW_ROWS
from retrodb.errors import MismatchError
from retrodb.format.entries import Metric
from retrodb.format.json_codec import JsonValue, from_plain, to_plain_object

Pooling = Literal["mean", "cls", "max", "mean_sqrt_len"]
PoolingSpan = Literal["all", "content"]


@dataclass(frozen=True)
class EncoderIdentity:
    """Everything that the vector of a text and the distance of two vectors depend on."""

    kind: Literal["bert", "hashing"]
    dimension: int  # D, after the truncation that a model may require
    weights: str  # SHA-256 of the safetensors files; for a hashing encoder its feature specification
    config: str = ""  # SHA-256 of the settings of the architecture, such as the number of heads
    tokenizer: str = ""  # SHA-256 of the tokenizer, without padding and truncation
    pooling: Pooling = "mean"
    pooling_span: PoolingSpan = "all"  # "all" tokens, or only the "content" without [CLS] and [SEP]
    normalise: bool = False  # to unit length
    query_prefix: str = ""
    passage_prefix: str = ""
    max_length: int = 0  # tokens including special tokens; longer texts are cut off; 0 is no limit
    metric: Metric = "squared_l2"
    storage_dtype: Literal["float16"] = "float16"
    query_model: EncoderIdentity | None = None  # the separate model for queries, if there is one (DPR)

    def to_json(self) -> dict[str, JsonValue]:
        """The identity as plain values. `from_json` is the inverse."""
        return to_plain_object(self)

    @classmethod
    def from_json(cls, values: Mapping[str, object]) -> EncoderIdentity:
        """The identity of plain values that `to_json` made. Fields that are missing have their default.

        Raises:
            MismatchError: this version does not know a field.
            DamagedFileError: a required field is missing, or a value has a wrong type.
        """
        unknown = set(values) - {field.name for field in fields(cls)}
        if unknown:
            raise MismatchError(
                f"the encoder was recorded with unknown settings ({', '.join(sorted(unknown))})",
                remedy="Use the version of retrodb that wrote it, or a newer one.",
            )
        query_model = values.get("query_model")
        if isinstance(query_model, Mapping):
            cls.from_json(query_model)  # its fields are checked as well
        return from_plain(cls, values, where="the encoder of a space")

    def fingerprint(self) -> str:
        """SHA-256 of the canonical JSON form, in hex."""
        return digest_json(self.to_json())

    def difference(self, other: EncoderIdentity) -> list[str]:
        """The fields that differ, as `field: ours, theirs`. Empty if vectors of both can be mixed."""
        own_values, other_values = self.to_json(), other.to_json()
        return [
            f"{name}: {value!r}, {other_values[name]!r}"
            for name, value in own_values.items()
            if value != other_values[name]
        ]


@dataclass(frozen=True)
class Provenance:
    """How vectors are computed on this machine. It is shown, but never compared."""

    name: str  # that the user gave
    origin: str  # of the model: a folder, the cache of the hub, or an installed package
    implementation: Literal["lean", "transformers", "hashing"]
    device: str
    compute_dtype: str
    window_rows: int = WINDOW_ROWS  # passages that one call of `encode_passages` should get
    batch_tokens: int = 0  # maximum number of tokens in a batch; 0 for an encoder without batches
    versions: dict[str, str] = field(default_factory=dict)  # library -> version


def digest_json(value: object) -> str:
    """SHA-256 of a JSON value in one canonical form, in hex."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def library_versions(*names: str) -> dict[str, str]:
    """The installed versions of the named distributions."""
    return {name: metadata.version(name) for name in names}
