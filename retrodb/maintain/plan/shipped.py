"""The figures that are used where none were measured: each was measured once, on the machine and day that its origin names."""

from __future__ import annotations

from retrodb.maintain.plan.figures import CorpusAverages, PlanFigures, PlanRate
from retrodb.maintain.plan.request import encoder_name, hashing_dimension

_TODAY = "shipped: 2026-11-28, one core of an Intel Xeon with AVX-512, Wikipedia and statutes (2026-11-28-plan.md)"
SHIPPED_RATES = {
    "ingest": PlanRate(1.2e7, _TODAY),
    "dedup": PlanRate(7.5e7, _TODAY),
    "near-duplicates": PlanRate(3.2e7, _TODAY),
    "products": PlanRate(5.2e10, _TODAY),
    "training": PlanRate(1.7e7, _TODAY),
    "index": PlanRate(2e7, _TODAY),
    "merge": PlanRate(1.2e8, "shipped: 2026-11-28, 500,006 vectors of 64 dimensions (2026-11-28-training.md)"),
    "scan": PlanRate(4.5e10, _TODAY),
    "neighbours": PlanRate(3.2e4, _TODAY),
    "exchange": PlanRate(1.3e5, "shipped: 2026-11-28, 494,831 rows in 16 ranges (2026-11-28-list-ranges.md)"),
    "export": PlanRate(1.6e5, _TODAY),
}
"""Rates of one core, except for `embed`, whose rate depends on the encoder."""

_EMBED_RATES = {
    "all-MiniLM-L6-v2": PlanRate(41.9, "shipped: 2026-11-21, one core of an AMD EPYC, float32 (2026-11-21-embed.md)"),
    # 10.6 million weights in the layers of MiniLM-L6, 85 million in those of BERT-base.
    "bert-base-uncased": PlanRate(
        41.9 * 10.6 / 85, "estimate, not measured: all-MiniLM-L6-v2 times the ratio of the weights in the layers"
    ),
}
_HASHING_COMPONENTS_PER_S = 2e7
SHIPPED_AVERAGES = CorpusAverages(
    text_bytes_per_token=4.2,
    tokens_per_document=550,
    chunks_bytes_per_token=3.1,
    documents_bytes=33,
    token_bytes=2,
    pair_bytes=0.5,
    duplicate_fraction=0.01,
    origin=_TODAY,
)
_COMMAND_S = 0.65
PLANNING_S = 0.00045
"""Planning and committing of a shard: the slowest command of 2026-11-28-scale-simulation.md took 6.7 s for 15,000."""
TASK_S = {"local": 0.02, "s3": 0.1}
"""What a task costs in addition when workers run it, at most, by where its files are."""
TASK_ORIGIN = (
    "estimate: a bound on what it takes to give a task to a worker, which benchmarks/bench_workers.py measures"
)


def shipped_figures(encoder: str) -> PlanFigures:
    """The shipped figures for an encoder; without a rate of `embed` where nothing was measured."""
    name = encoder_name(encoder)
    embed = _EMBED_RATES.get(name)
    if dimension := hashing_dimension(name):
        embed = PlanRate(_HASHING_COMPONENTS_PER_S / dimension, _TODAY)
    rates = dict(SHIPPED_RATES) if embed is None else {**SHIPPED_RATES, "embed": embed}
    return PlanFigures(
        rates,
        SHIPPED_AVERAGES,
        1.0,
        "shipped: 2026-11, recall@10 of 0.95 on 88,649 vectors by all-MiniLM-L6-v2; an estimate beyond 16,384 lists",
        _COMMAND_S,
    )
