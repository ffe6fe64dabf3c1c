"""The measured rates of the stages on this machine, stored for planning."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias

import msgspec
import orjson

from retrodb.bench.machine import cpu_name
from retrodb.encode.threads import available_cpus
from retrodb.store.cached_lines import cache_folder

_Rates: TypeAlias = dict[str, dict[str, dict[str, float]]]  # machine -> encoder -> stage -> rate

UNITS = {
    "ingest": "text bytes",
    "dedup": "text bytes",
    "embed": "chunks",
    "index": "chunks",
    "neighbours": "rows",
    "export": "rows",
}
"""What a rate counts, per second and core."""


def read_rates(encoder: str | None = None) -> dict[str, float]:
    """Rates per core by stage, in `UNITS` per second; empty when none were measured.

    Args:
        encoder: fingerprint of a space's encoder. When there is no measurement with it, the last one with another
            encoder is given, without the rate of `embed`.
    """
    measured = _read().get(_machine(), {})
    if encoder in measured:
        return measured[encoder]
    latest = next(reversed(measured.values()), {})
    return {stage: rate for stage, rate in latest.items() if stage != "embed"}


def keep_rates(encoder: str, rates: Mapping[str, float]) -> Path:
    """Store the rates measured with an encoder, and return the file."""
    stored = _read()
    others = {key: value for key, value in stored.get(_machine(), {}).items() if key != encoder}
    stored[_machine()] = {**others, encoder: dict(rates)}  # the last key is the last measurement
    path = cache_folder() / "rates.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(orjson.dumps(stored, option=orjson.OPT_INDENT_2))
    return path


def _read() -> _Rates:
    try:
        return msgspec.json.decode((cache_folder() / "rates.json").read_bytes(), type=_Rates)
    except (OSError, msgspec.DecodeError):  # not measured, or incomplete: measuring again is cheap
        return {}


def _machine() -> str:
    return f"{cpu_name()}, {available_cpus()} cores"
