"""The figures of a plan: rates of one core and averages of texts, with their origins. A file keeps what `--measure` found."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from retrodb.errors import ConfigError, InputError, UsageError

RATE_UNITS: Mapping[str, str] = {
    "ingest": "text bytes",
    "dedup": "text bytes",
    "near-duplicates": "text bytes",
    "embed": "chunks",
    "products": "float products",  # to find nearest lists, train them, and compare a sample with all vectors
    "training": "components",  # of the vectors of a sample, for all that is not products
    "index": "components",  # of vectors that become codes in a part
    "merge": "bytes",  # of parts that are merged
    "scan": "code products",  # of the join
    "neighbours": "rows",  # all of a row in a join but its scan
    "exchange": "sent rows",  # to another range of lists
    "export": "rows",
}
"""What a rate counts, per second and core."""


@dataclass(frozen=True)
class PlanRate:
    """A rate of one core, or of one GPU."""

    per_s: float
    origin: str  # "measured here DATE", or where the shipped figure is from


@dataclass(frozen=True)
class CorpusAverages:
    """What decides the bytes of a database, next to the number of its tokens."""

    text_bytes_per_token: float
    tokens_per_document: float
    chunks_bytes_per_token: float  # of the compressed file of texts and token lists
    documents_bytes: float  # of a document in the files of documents
    token_bytes: int  # 2, or 4 with a vocabulary of more than 65,535 tokens
    pair_bytes: float  # of files of near-duplicate pairs, for each document
    duplicate_fraction: float  # of chunks that near-duplicates delete
    origin: str


@dataclass(frozen=True)
class PlanFigures:
    """All figures of a plan."""

    rates: Mapping[str, PlanRate]
    averages: CorpusAverages
    probes_factor: float  # lists that a row reads, relative to the table of `default_nprobe`
    probes_origin: str
    command_s: float  # to start a command, load its libraries, plan and commit


@dataclass(frozen=True)
class RatesFile:
    """What `retrodb plan --measure` stores."""

    version: int
    measured_at: str  # ISO 8601, to the day
    machine: str
    sample: str  # what it was measured on
    encoder: str  # that `embed` was measured with
    dimension: int
    command_s: float
    probes_factor: float | None  # None: not measured with this encoder
    rates: dict[str, float]
    averages: CorpusAverages


VERSION = 1


def check_writable(path: Path) -> None:
    """Raises UsageError for a file that cannot be written, before a minute of work. The file stays as it is."""
    is_there = path.exists()
    try:
        path.open("ab").close()
    except OSError as error:
        remedy = "Name a file in a folder that you can write to."
        raise UsageError(f"cannot be written ({error.strerror})", where=str(path), remedy=remedy) from error
    if not is_there:
        path.unlink()


def write_rates(path: Path, stored: RatesFile) -> None:
    """Store measured figures. Raises OSError."""
    path.write_bytes(msgspec.json.format(msgspec.json.encode(stored), indent=2) + b"\n")


def read_rates_file(path: Path) -> RatesFile:
    """Measured figures.

    Raises:
        InputError: there is no such file, or it cannot be read.
        ConfigError: it is no file of rates, or one of another version.
    """
    try:
        stored = msgspec.json.decode(path.read_bytes(), type=RatesFile)
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", where=str(path), remedy=_MEASURE) from error
    except msgspec.DecodeError as error:  # ValidationError is one
        raise ConfigError(f"no file of rates ({error})", where=str(path), remedy=_MEASURE) from error
    unknown = sorted(set(stored.rates) - set(RATE_UNITS))
    wrong = [*(f"unknown rate '{name}'" for name in unknown), *_impossible(stored)]
    if stored.version != VERSION or wrong:
        reason = f"version {stored.version}" if stored.version != VERSION else wrong[0]
        raise ConfigError(f"no file of rates of this retrodb ({reason})", where=str(path), remedy=_MEASURE)
    return stored


def _impossible(stored: RatesFile) -> Iterator[str]:
    """The figures that no measurement gives, as text. Plans divide by some, and multiply all by large numbers."""
    averages = stored.averages
    for name, rate in stored.rates.items():
        if not 1e-6 <= rate <= 1e18:
            yield f"invalid rate '{name}': {rate:g}"
    figures = {
        "dimension": (stored.dimension, 1, 1e6),
        "command_s": (stored.command_s, 0, 1e4),
        "probes_factor": (1 if stored.probes_factor is None else stored.probes_factor, 1e-3, 1e3),
        "text_bytes_per_token": (averages.text_bytes_per_token, 1e-3, 1e4),
        "tokens_per_document": (averages.tokens_per_document, 1e-3, 1e12),
        "chunks_bytes_per_token": (averages.chunks_bytes_per_token, 1e-3, 1e4),
        "documents_bytes": (averages.documents_bytes, 0, 1e9),
        "token_bytes": (averages.token_bytes, 1, 8),
        "pair_bytes": (averages.pair_bytes, 0, 1e9),
        "duplicate_fraction": (averages.duplicate_fraction, 0, 1),
    }
    for name, (figure, least, most) in figures.items():
        if not least <= figure <= most:
            yield f"invalid '{name}': {figure:g}"


_MEASURE = "Run 'retrodb plan --measure FILE', which writes one."


def measured_figures(shipped: PlanFigures, stored: RatesFile, encoder: str) -> PlanFigures:
    """The shipped figures with those that were measured in their place.

    Args:
        encoder: of the plan. A rate of `embed` with another one does not count.
    """
    origin = f"measured {stored.measured_at}, {stored.machine}"
    rates = {
        name: PlanRate(rate, origin)
        for name, rate in stored.rates.items()
        if name != "embed" or stored.encoder == encoder
    }
    factor = stored.probes_factor if stored.encoder == encoder else None
    return PlanFigures(
        {**shipped.rates, **rates},
        stored.averages,
        shipped.probes_factor if factor is None else factor,
        shipped.probes_origin if factor is None else origin,
        stored.command_s,
    )
