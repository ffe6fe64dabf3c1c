"""Frozen dataclasses as JSON and back: the one codec of snapshots, runs, tasks and reports.

Values are written with sorted keys, so equal values give equal bytes. A field that is missing in older JSON takes its
default; a field that this version does not know is ignored. Bytes are base64.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, cast

import msgspec

from retrodb.errors import DamagedFileError

if TYPE_CHECKING:
    JsonValue: TypeAlias = "bool | int | float | str | Sequence[JsonValue] | Mapping[str, JsonValue] | None"
    JsonObject: TypeAlias = Mapping[str, JsonValue]
else:  # msgspec reads annotations when it decodes, and knows no recursive type
    JsonValue, JsonObject = Any, Mapping[str, Any]

T = TypeVar("T")


def to_json(value: object) -> bytes:
    """The JSON bytes of a dataclass, or of plain values."""
    return msgspec.json.encode(value, order="sorted")


def from_json(kind: type[T], data: bytes, *, where: str, remedy: str | None = None) -> T:
    """Read JSON bytes as a dataclass.

    Raises:
        DamagedFileError: when the bytes are not JSON, or not of this kind; names the field.
    """
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.DecodeError as error:  # also of a value of the wrong type
        raise DamagedFileError(f"not the JSON of a {kind.__name__} ({error})", where=where, remedy=remedy) from error


def to_plain(value: object) -> JsonValue:
    """Mappings, lists and scalars in place of dataclasses, tuples and bytes."""
    return cast("JsonValue", msgspec.to_builtins(value))


def to_plain_object(value: object) -> dict[str, JsonValue]:
    """The fields of a dataclass as plain values."""
    return cast("dict[str, JsonValue]", msgspec.to_builtins(value))


def from_plain(kind: type[T], value: object, *, where: str) -> T:
    """Read plain values as a dataclass.

    Raises:
        DamagedFileError: when they are not of this kind; names the field.
    """
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise DamagedFileError(f"not the fields of a {kind.__name__} ({error})", where=where) from error
