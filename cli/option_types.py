"""The types of options: fractions, large numbers, sizes, durations and snapshots, as people write them."""

from __future__ import annotations

import re
from datetime import timedelta

import click


def fraction(text: str) -> float:
    """The type of options that are a fraction: 0.005 or 0.5%."""
    try:
        value = float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise click.BadParameter(f"'{text}' is not a fraction. Write 0.5% or 0.005.")
    return value


def count(text: str) -> int:
    """The type of options that are a large number: 1e12, 1.5T, 300B, 20M, 5k or 1,000. Units are powers of a thousand."""
    match = re.fullmatch(r"(\d[\d,_]*\.?\d*(?:e\+?\d{1,2})?)\s*([kMBT]?)", text.strip(), re.IGNORECASE)
    number = (
        0.0 if match is None else float(re.sub("[,_]", "", match[1])) * 1000 ** " KMBT".index(match[2].upper() or " ")
    )
    if not 1 <= number < 1e18:
        raise click.BadParameter(f"'{text}' is not a number of at least 1. Write 1e12, 1T, 300B or 1,000,000.")
    return round(number)


def size(text: str) -> int:
    """The type of options that are a number of bytes: 8GiB, 500MiB or 4096. All units are powers of two."""
    match = re.fullmatch(r"(\d+)\s*([KMGT]?)(?:I?B)?", text, re.IGNORECASE)
    if match is None or int(match[1]) == 0:
        raise click.BadParameter(f"'{text}' is not a size. Write 8GiB, 500MiB or a number of bytes.")
    return int(match[1]) << (10 * " KMGT".index(match[2].upper() or " "))


def duration(text: str) -> timedelta:
    """The type of options that are a duration: 7d, 12h, 30m or 45s."""
    units = {"d": "days", "h": "hours", "m": "minutes", "s": "seconds"}
    if not text[:-1].isdecimal() or text[-1] not in units:
        raise click.BadParameter(f"'{text}' is not a duration. Write 7d, 12h, 30m or 45s.")
    try:
        return timedelta(**{units[text[-1]]: int(text[:-1])})
    except OverflowError:
        raise click.BadParameter(f"'{text}' is too long.") from None


def snapshot_ref(text: str) -> int | str:
    """The type of options and arguments that are a snapshot: its number, or the name of a pin, which the library looks up."""
    name = text.strip()
    if name.isascii() and name.isdecimal():
        return int(name)
    if not name or name.startswith("-"):
        raise click.BadParameter(f"'{text}' is not a snapshot. Write its number, or the name of a pin.")
    return name
