"""Prices of a plan: `gpu-hour=2.5,cpu-hour=0.04`. None is assumed: what has no price is not part of the cost."""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass, fields

from retrodb.errors import UsageError


@dataclass(frozen=True)
class PlanPrices:
    """Prices in any one currency. None: not given."""

    gpu_hour: float | None = None  # of one GPU
    cpu_hour: float | None = None  # of one core
    storage_gb_month: float | None = None  # of 10^9 bytes
    transfer_gb: float | None = None  # of 10^9 bytes that tasks read, write or exchange
    put_1000: float | None = None  # of 1,000 written objects, with --store s3
    get_1000: float | None = None  # of 1,000 read objects, with --store s3


_MOST = 1e9
PRICE_NAMES = tuple(field.name.replace("_", "-") for field in fields(PlanPrices))
"""The names of prices, as they are written."""


def parse_prices(text: str) -> PlanPrices:
    """Prices as people write them: names and numbers, separated by commas.

    Raises:
        UsageError: names the part that is wrong.
    """
    values: dict[str, float] = {}
    for part in text.split(","):
        name, has_value, amount = (piece.strip() for piece in part.partition("="))
        where, field = f"--price, part '{part.strip()}'", name.replace("-", "_")
        if not has_value:
            raise UsageError("a price is NAME=NUMBER", where=where, remedy=f"Names are: {', '.join(PRICE_NAMES)}.")
        if name not in PRICE_NAMES:
            near = difflib.get_close_matches(name, PRICE_NAMES, n=1)
            hint = f"Did you mean '{near[0]}'?" if near else f"Names are: {', '.join(PRICE_NAMES)}."
            raise UsageError(f"unknown price '{name}'", where=where, remedy=hint)
        if field in values:
            raise UsageError(f"'{name}' has two prices", where=where, remedy="Give it once.")
        values[field] = _amount(amount, where)
    return PlanPrices(**values)


def _amount(text: str, where: str) -> float:
    try:
        amount = float(text)
    except ValueError:
        amount = math.nan
    if not 0 <= amount <= _MOST:
        raise UsageError(f"'{text}' is not a price", where=where, remedy="Write a number from 0 to 1e9, such as 0.04.")
    return amount
