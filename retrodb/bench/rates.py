"""The rates of the stages that this machine has shown, kept for planning."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson

from retrodb.bench.machine import cpu_name
from retrodb.encode.threads import available_cpus
from retrodb.store.verify import cache_folder

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
    """Rates per core by stage, in `UNITS` per second; empty where none were measured.

    Args:
        encoder: fingerprint of a space's encoder. Where it was not measured, what was measured last with another one
            is given, without the rate of `embed`.
    """
    measured: dict[str, dict[str, float]] = _read().get(_machine(), {})
    if encoder in measured:
        return measured[encoder]
    latest = next(reversed(measured.values()), {})
    return {stage: rate for stage, rate in latest.items() if stage != "embed"}


def keep_rates(encoder: str, rates: Mapping[str, float]) -> Path:
    """Keep what was measured with an encoder, and give the file."""
    kept = _read()
    own = {key: value for key, value in kept.get(_machine(), {}).items() if key != encoder}
    kept[_machine()] = {**own, encoder: dict(rates)}
    path = cache_folder() / "rates.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(orjson.dumps(kept, option=orjson.OPT_INDENT_2))
    return path


def _read() -> dict[str, Any]:
    try:
        kept = orjson.loads((cache_folder() / "rates.json").read_bytes())
    except (OSError, orjson.JSONDecodeError):  # never measured, or cut off: measuring again is cheap
        return {}
    return kept if isinstance(kept, dict) else {}


def _machine() -> str:
    return f"{cpu_name()}, {available_cpus()} cores"
