"""Rates of GPUs: measured where we had one, else arithmetic on the vendor's figures, which says so."""

from __future__ import annotations

from dataclasses import dataclass

from retrodb.maintain.plan.figures import PlanRate

_TFLOPS = {"h100": 989, "h200": 989, "a100": 312, "l40s": 362, "l4": 121}  # dense bfloat16, by the vendor's data sheets
GPUS = tuple(_TFLOPS)
"""The known types."""

_H100_CHUNKS_PER_S = {"all-MiniLM-L6-v2": 110_824.0, "bert-base-uncased": 28_908.0}  # in batches of 65,536 tokens
_EMBED_ORIGIN = "shipped: 2026-11-27, one H100, random weights, without tokenizing (2026-11-27-embed-gpu.md)"

# Rows a second, which read 32 lists of 610 vectors with 384 dimensions. Four times as many pairs took 8% longer, so these are
# lower bounds where lists are longer or more queries read them.
_JOINED_PER_S = {"h100": 52_443.0, "h200": 54_695.0}
_PRODUCTS_OF_ROW = 32 * 610 * 384


@dataclass(frozen=True)
class _Factor:
    """A rate of a GPU that was not measured, relative to the H100."""

    value: float
    origin: str

    @staticmethod
    def of(gpu: str) -> _Factor:
        factor = _TFLOPS[gpu] / _TFLOPS["h100"]
        return _Factor(
            factor, f"estimate, not measured: {factor:.2f} of an H100, by the vendor's dense bfloat16 rates; "
        )


def embed_rate(gpu: str, encoder: str) -> PlanRate | None:
    """Chunks a second, from token ids to float16 vectors; None for an encoder that was not measured on a GPU.

    Args:
        encoder: the last part of its name.
    """
    if encoder not in _H100_CHUNKS_PER_S:
        return None
    if gpu == "h100":
        return PlanRate(_H100_CHUNKS_PER_S[encoder], _EMBED_ORIGIN)
    factor = _Factor.of(gpu)
    return PlanRate(_H100_CHUNKS_PER_S[encoder] * factor.value, factor.origin + _EMBED_ORIGIN)


def join_rate(gpu: str) -> PlanRate:
    """Code products a second of a join."""
    origin = (
        f"shipped: 2026-11-27, one {'H200' if gpu == 'h200' else 'H100'}, 10 million vectors, 32 lists a row; a lower bound "
        "(2026-11-27-neighbours-gpu.md)"
    )
    if gpu in _JOINED_PER_S:
        return PlanRate(_JOINED_PER_S[gpu] * _PRODUCTS_OF_ROW, origin)
    factor = _Factor.of(gpu)
    return PlanRate(_JOINED_PER_S["h100"] * _PRODUCTS_OF_ROW * factor.value, factor.origin + origin)
