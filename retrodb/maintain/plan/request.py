"""What is asked of a plan: how much text, with which encoder, on which machines."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass, field

from retrodb.config import InitParams, NeighboursParams
from retrodb.errors import UsageError
from retrodb.format.settings import MAX_CHUNK_TOKENS
from retrodb.maintain.plan.gpus import GPUS
from retrodb.maintain.plan.prices import PlanPrices
from retrodb.memory import MIB

MOST_HASHED = 65_536  # dimensions of a hashing encoder
STORES = ("local", "s3")


@dataclass(frozen=True)
class PlanRequest:
    """A database to plan, and the machines that build it."""

    tokens: int  # of the language model
    encoder: str = InitParams.encoder  # "hashing:DIM", or the name of a model
    dimension: int | None = None  # of its vectors; None: known by its name
    chunk_tokens: int = InitParams.chunk_tokens
    workers: int = 1  # CPU cores, with a process each
    worker_memory: int = 4 << 30  # bytes, of each
    gpu: str | None = None  # the type of GPU; None: no GPU
    gpus: int = 0  # of it
    k: int = NeighboursParams.k  # neighbours of a row
    spare_neighbours: int = NeighboursParams.spare_neighbours
    route_ranges: int = NeighboursParams.route_ranges
    search_memory_bytes: int = 8 << 30  # of the machine that will search: it chooses the factory
    factory: str = "auto"  # FAISS factory string; "auto" chooses by size
    store: str = "local"  # or "s3"
    prices: PlanPrices = field(default_factory=PlanPrices)


@dataclass(frozen=True)
class EncoderShape:
    """What an encoder's name says of it."""

    dimension: int
    parameters: int  # of the model; 0: none


ENCODERS = {
    "all-MiniLM-L6-v2": EncoderShape(384, 22_700_000),
    "bert-base-uncased": EncoderShape(768, 110_000_000),
}
"""Encoders of which rates were measured, by the last part of their names."""


def encoder_name(encoder: str) -> str:
    """The last part of an encoder's name, which rates are stored under."""
    return encoder.rstrip("/").rpartition("/")[2]


def hashing_dimension(encoder: str) -> int | None:
    """The dimensions of a hashing encoder; None for other names."""
    match = re.fullmatch(r"hashing:([1-9]\d{0,4})", encoder)
    return int(match[1]) if match and int(match[1]) <= MOST_HASHED else None


def shape_of(request: PlanRequest) -> EncoderShape:
    """The shape of the encoder of a plan. Raises UsageError when it is not known."""
    if request.encoder.startswith("hashing:"):
        return EncoderShape(_hashed_dimension(request), 0)
    known = ENCODERS.get(encoder_name(request.encoder))
    if request.dimension is not None:
        return EncoderShape(request.dimension, known.parameters if known else ENCODERS["bert-base-uncased"].parameters)
    if known is None:
        raise UsageError(
            f"nothing is known of the encoder '{request.encoder}'",
            remedy=f"Give --dimension and measured --rates, or one of: hashing:DIM, {', '.join(ENCODERS)}.",
        )
    return known


def _hashed_dimension(request: PlanRequest) -> int:
    hashed = hashing_dimension(request.encoder)
    if hashed is None:
        raise UsageError(
            f"'{request.encoder}' has no dimension from 1 to {MOST_HASHED:,}", remedy="Write it as hashing:256."
        )
    if request.dimension not in (None, hashed):
        wrong = f"--dimension {request.dimension}, but '{request.encoder}' has vectors of {hashed} dimensions"
        raise UsageError(wrong, remedy="Leave out --dimension.")
    return hashed


def check_request(request: PlanRequest) -> None:
    """Raises UsageError for a value that no database or machine can have."""
    if not 1 <= request.chunk_tokens <= MAX_CHUNK_TOKENS:
        raise UsageError(f"chunks of {request.chunk_tokens} tokens", remedy=f"Give 1 to {MAX_CHUNK_TOKENS:,}.")
    if request.tokens < request.chunk_tokens:
        what = f"{request.tokens:,} tokens are less than a chunk"
        raise UsageError(what, remedy=f"Give at least --tokens {request.chunk_tokens:,}.")
    if request.worker_memory < MIB:
        raise UsageError(f"--worker-memory of {request.worker_memory:,} bytes", remedy="Give at least 1MiB.")
    least = {
        "workers": (request.workers, 1),
        "k": (request.k, 1),
        "spare-neighbours": (request.spare_neighbours, 0),
        "gpus": (request.gpus, 0),
        "dimension": (request.dimension if request.dimension is not None else 1, 1),
    }
    for name, (value, smallest) in least.items():
        if value < smallest:
            raise UsageError(f"--{name} {value}", remedy=f"Give at least {smallest:,}.")
    if request.tokens > _MOST_TOKENS:
        raise UsageError(f"{request.tokens:.3g} tokens", remedy="Give at most 1e14.")
    if request.route_ranges == 1 or request.route_ranges < 0:
        raise UsageError(
            f"--route-ranges {request.route_ranges}", remedy="Give at least 2 ranges of lists, or 0 for no routing."
        )
    if request.store not in STORES:
        raise UsageError(f"--store {request.store}", remedy=f"Give one of: {', '.join(STORES)}.")
    _check_gpus(request)
    shape_of(request)


_MOST_TOKENS = 10**14


def _check_gpus(request: PlanRequest) -> None:
    if request.gpu is not None and request.gpu not in GPUS:
        near = difflib.get_close_matches(request.gpu, GPUS, n=1)
        raise UsageError(
            f"unknown GPU '{request.gpu}'",
            remedy=f"Known are: {', '.join(GPUS)}." + (f" Did you mean '{near[0]}'?" if near else ""),
        )
    if request.gpu is None and request.gpus:
        raise UsageError(f"--gpus {request.gpus} without a type", remedy=f"Give --gpu as one of: {', '.join(GPUS)}.")
    if request.gpu is not None and not request.gpus:
        raise UsageError(f"--gpu {request.gpu} without a number", remedy="Give --gpus N.")
