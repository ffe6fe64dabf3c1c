"""Which export format has which of the parameters that only some have."""

from __future__ import annotations

from dataclasses import fields

from retrodb.config import ExportParams
from retrodb.errors import UsageError

CONTEXTS = ("ctxs", "positive_ctxs")
"""Fields of a passage reader's record that can hold the neighbours."""


def check_format_params(params: ExportParams, to: str) -> None:
    """Raises UsageError for a parameter that the format does not have, or an invalid value."""
    for field in fields(params):
        value = getattr(params, field.name)
        if value is None:
            continue
        name = "--" + field.name.replace("_", "-")
        if to != (of_format := "dpr" if field.name == "contexts" else "megatron"):
            remedy = f"Remove it, or export with --to {of_format}."
            raise UsageError(f"the format '{to}' has no option {name}", remedy=remedy)
        minimum = 0 if field.name == "eval_iters" else 1
        if isinstance(value, int) and value < minimum:
            raise UsageError(f"{name} of {value}", remedy=f"Give at least {minimum}.")
    if params.contexts is not None and params.contexts not in CONTEXTS:
        raise UsageError(f"unknown contexts '{params.contexts}'", remedy=f"Known are: {', '.join(CONTEXTS)}.")
