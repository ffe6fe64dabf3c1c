"""Arrow values as values that JSON has. The result does not depend on which other packages are installed.

pyarrow's own `to_pylist` returns pandas objects if pandas is there, and raises for a whole batch if one value has no Python
object: a year above 9999, a time in nanoseconds, a time zone that the machine does not know.

=========================  ==========================================================================
Arrow type                 JSON value
=========================  ==========================================================================
bool, integers, floats     the same; NaN and infinity become null when they are stored
string                     the same; bytes that are not UTF-8 are refused
binary                     `bytes`, see `document.json_of_bytes`
decimal                    string of digits: "12.50"
date                       ISO 8601: "2024-02-29"
time                       ISO 8601: "23:59:59.000001"; 9 digits only if nanoseconds are needed
timestamp                  ISO 8601: "2024-02-29T23:59:59"; with a time zone: the UTC time and "+00:00"
duration, interval         ISO 8601: "P1DT2H3M4.5S"
list, struct               array, object
map                        array of [key, value]
dictionary, run-end        their values
extension                  the value of the storage type; "arrow.uuid" as the text of a UUID
=========================  ==========================================================================
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable
from datetime import date
from itertools import repeat
from typing import TYPE_CHECKING, TypeAlias

from retrodb.corpus.document import FormattedValue, UnreadableValue

if TYPE_CHECKING:
    import pyarrow as pa

OUT_OF_RANGE = "value-out-of-range"
_PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
_DAY_S = 86_400
_UNIX_EPOCH = date(1970, 1, 1).toordinal()

_Format: TypeAlias = "Callable[[int], str | None]"  # None: the value has no ISO 8601 form


def json_values(array: pa.Array) -> list[object]:
    """One value for each element, of the types that JSON has, or `bytes`; `UnreadableValue` where there is none.

    Raises:
        pyarrow.ArrowException: the array is damaged.
    """
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.types as types

    kind = array.type
    if isinstance(kind, pa.BaseExtensionType):
        values = json_values(array.storage)
        return [_uuid_text(value) for value in values] if kind.extension_name == "arrow.uuid" else values
    if types.is_dictionary(kind):
        return json_values(array.dictionary_decode())
    if types.is_run_end_encoded(kind):
        return json_values(pc.run_end_decode(array))
    if types.is_float16(kind):
        array = array.cast(pa.float32())
    if types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind):
        return [_text(value) for value in array.cast(pa.large_binary()).to_pylist()]
    if types.is_decimal(kind):
        return [_decimal(scalar) for scalar in array]
    if types.is_temporal(kind):
        return _temporal_values(array)
    if types.is_struct(kind):
        return _objects(array)
    if types.is_nested(kind):
        return [_list_of(scalar) if scalar.is_valid else None for scalar in array]
    return list(array.to_pylist())


def validate(array: pa.Array) -> None:
    """Check that an array that came from a file can be read without a crash.

    Strings are checked as binary values, since one that is not UTF-8 must cost only its row.

    Raises:
        pyarrow.ArrowException: the array is damaged.
    """
    import pyarrow as pa

    if isinstance(array.type, pa.BaseExtensionType):
        array = array.storage
    array.validate()  # sizes of buffers, before a view uses them
    array.view(_as_binary(array.type)).validate(full=True)


def _as_binary(kind: pa.DataType) -> pa.DataType:
    """The type with binary in place of string, where Arrow can view it so."""
    import pyarrow as pa
    import pyarrow.types as types

    if types.is_string(kind):
        return pa.binary()
    if types.is_large_string(kind):
        return pa.large_binary()
    if types.is_string_view(kind):
        return pa.binary_view()
    if types.is_struct(kind):
        return pa.struct([field.with_type(_as_binary(field.type)) for field in kind])
    if types.is_list(kind):
        return pa.list_(kind.value_field.with_type(_as_binary(kind.value_type)))
    if types.is_large_list(kind):
        return pa.large_list(kind.value_field.with_type(_as_binary(kind.value_type)))
    if types.is_map(kind):
        return pa.map_(_as_binary(kind.key_type), kind.item_field.with_type(_as_binary(kind.item_type)))
    if types.is_dictionary(kind):
        return pa.dictionary(kind.index_type, _as_binary(kind.value_type))
    return kind


def column_types(kind: pa.DataType) -> Iterable[pa.DataType]:
    """A type and the types within it."""
    yield kind
    for index in range(kind.num_fields):
        yield from column_types(kind.field(index).type)


def _objects(array: pa.Array) -> list[object]:
    names = [array.type.field(index).name for index in range(array.type.num_fields)]
    columns = [json_values(column) for column in array.flatten()]
    rows: Iterable[tuple[object, ...]] = zip(*columns, strict=True) if columns else repeat((), len(array))
    return [
        (_unreadable(row) or dict(zip(names, row, strict=True))) if is_valid else None
        for row, is_valid in zip(rows, array.is_valid().to_pylist(), strict=True)
    ]


def _list_of(scalar: pa.Scalar) -> object:
    import pyarrow.types as types

    if types.is_union(scalar.type):
        import pyarrow as pa

        value = scalar.value
        return None if value is None or not value.is_valid else json_values(pa.array([value], value.type))[0]
    if types.is_map(scalar.type):
        keys, values = (json_values(scalar.values.field(index)) for index in (0, 1))
        return _unreadable(keys) or _unreadable(values) or [list(pair) for pair in zip(keys, values, strict=True)]
    values = json_values(scalar.values)
    return _unreadable(values) or values


def _unreadable(values: Iterable[object]) -> UnreadableValue | None:
    return next((value for value in values if isinstance(value, UnreadableValue)), None)


def _text(value: bytes | None) -> object:
    try:
        return None if value is None else value.decode()
    except UnicodeDecodeError:
        return UnreadableValue("invalid-utf8", value)


def _decimal(scalar: pa.Scalar) -> object:
    try:
        return FormattedValue(format(scalar.as_py(), "f")) if scalar.is_valid else None
    except ArithmeticError:  # more digits than its type allows
        return UnreadableValue(OUT_OF_RANGE, str(scalar.type))


def _uuid_text(value: object) -> object:
    return FormattedValue(uuid.UUID(bytes=value)) if isinstance(value, bytes) else value


def _temporal_values(array: pa.Array) -> list[object]:
    import pyarrow as pa
    import pyarrow.types as types

    kind = array.type
    if types.is_interval(kind):
        return [None if value is None else FormattedValue(_interval(*value)) for value in array.to_pylist()]
    integers = array.view(pa.int32() if kind.bit_width == 32 else pa.int64()).to_pylist()
    per_second = 1 if types.is_date(kind) else _PER_SECOND[kind.unit]
    format_value: _Format
    if types.is_date32(kind):
        format_value = _date
    elif types.is_date64(kind):
        format_value = lambda value: _date(value // (_DAY_S * 1000))  # noqa: E731 - milliseconds
    elif types.is_timestamp(kind):
        zone = "+00:00" if kind.tz else ""
        format_value = lambda value: _timestamp(value, per_second, zone)  # noqa: E731
    elif types.is_duration(kind):
        format_value = lambda value: _duration(value, per_second)  # noqa: E731
    else:
        format_value = lambda value: _time(value, per_second)  # noqa: E731
    return [None if value is None else _formatted(value, format_value, kind) for value in integers]


def _formatted(value: int, format_value: _Format, kind: pa.DataType) -> object:
    text = format_value(value)
    return UnreadableValue(OUT_OF_RANGE, f"{kind} {value}") if text is None else FormattedValue(text)


def _date(days: int) -> str | None:
    ordinal = days + _UNIX_EPOCH
    return date.fromordinal(ordinal).isoformat() if 1 <= ordinal <= date.max.toordinal() else None


def _timestamp(value: int, per_second: int, zone: str) -> str | None:
    days, rest = divmod(value, _DAY_S * per_second)
    day, time = _date(days), _time(rest, per_second)
    return None if day is None or time is None else f"{day}T{time}{zone}"


def _time(value: int, per_second: int) -> str | None:
    seconds, fraction = divmod(value, per_second)
    if not 0 <= seconds < _DAY_S:
        return None
    return f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}{_fraction(fraction, per_second)}"


def _fraction(value: int, per_second: int) -> str:
    """Six digits, as in Python's `isoformat`; nine if nanoseconds need them."""
    nanoseconds = value * (10**9 // per_second)
    if nanoseconds == 0:
        return ""
    return f".{nanoseconds:09}" if nanoseconds % 1000 else f".{nanoseconds // 1000:06}"


def _duration(value: int, per_second: int) -> str:
    seconds, fraction = divmod(abs(value), per_second)
    parts = [(seconds // _DAY_S, "D"), (seconds // 3600 % 24, "H"), (seconds // 60 % 60, "M")]
    days, hours, minutes = (f"{number}{unit}" if number else "" for number, unit in parts)
    rest = f"{seconds % 60}{_fraction(fraction, per_second).rstrip('0')}S" if seconds % 60 or fraction else ""
    time = f"{hours}{minutes}{rest}"
    text = f"P{days}{'T' if time else ''}{time}"
    return ("-" if value < 0 else "") + (text if text != "P" else "PT0S")


def _interval(months: int, days: int, nanoseconds: int) -> str:
    """Months, days and seconds, each with its sign: they are not convertible into each other."""
    parts = [f"{number}{unit}" for number, unit in ((months, "M"), (days, "D")) if number]
    if nanoseconds or not parts:
        seconds, fraction = divmod(abs(nanoseconds), 10**9)
        sign = "-" if nanoseconds < 0 else ""
        parts.append(f"T{sign}{seconds}{_fraction(fraction, 10**9).rstrip('0')}S")
    return "P" + "".join(parts)
