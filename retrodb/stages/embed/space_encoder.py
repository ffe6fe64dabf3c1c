"""The encoder of a space: loading it, and refusing another one."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import lru_cache

from retrodb.config import EmbedParams
from retrodb.encode.conventions import Overrides
from retrodb.encode.encoder import Encoder
from retrodb.encode.identity import EncoderIdentity
from retrodb.encode.resolve import resolve_encoder
from retrodb.encode.threads import available_cpus
from retrodb.errors import MismatchError
from retrodb.format.entries import SpaceEntry
from retrodb.memory import MIB, PROCESS_MEMORY


@dataclass(frozen=True)
class EncoderHardware:
    """What an encoder runs on. It is part of the provenance of vectors and never of their identity."""

    device: str = "auto"  # "auto", "cpu", "cuda", "cuda:1" or "mps"
    dtype: str = "auto"  # compute dtype
    batch_tokens: int | None = None  # token budget of a batch; None chooses by the device
    threads: int | None = None  # CPU threads of this process; None is one per core
    gpus: int = 1  # GPUs that share the tasks, one process each


_CONVENTION = ("pooling", "pooling_span", "normalise", "metric", "query_prefix", "passage_prefix", "max_length")


@lru_cache(maxsize=4)
def load_encoder(params: EmbedParams, hardware: EncoderHardware) -> Encoder:
    """The encoder of a space, loaded once per process."""
    overrides = Overrides(**{name: getattr(params, name) for name in _CONVENTION})
    return resolve_encoder(
        params.encoder,
        device=hardware.device,
        dtype=hardware.dtype,
        batch_tokens=hardware.batch_tokens,
        threads=hardware.threads,
        overrides=None if overrides == Overrides() else overrides,
        query_model=params.query_model,
    )


def encoder_bytes(encoder: Encoder, hardware: EncoderHardware) -> int:
    """Memory of a loaded encoder: what the process took for its weights and libraries, and the activations of its batches.

    A batch on a CPU has about ten arrays of (tokens, dimension) float32 at once, in each of its threads.
    """
    on_cpu = encoder.provenance.device == "cpu"
    batches = encoder.provenance.batch_tokens * (hardware.threads or available_cpus()) if on_cpu else 0
    return max(0, PROCESS_MEMORY.grown_bytes - _LIBRARY_MIB * MIB) + batches * encoder.identity.dimension * 4 * 10


_LIBRARY_MIB = 40  # of what a process takes for its own libraries, which every task counts already


def check_identity(space: str, entry: SpaceEntry, identity: EncoderIdentity) -> None:
    """Raises MismatchError when the vectors of an encoder do not belong to a space."""
    stored = EncoderIdentity.from_json(entry.identity)
    if stored != identity:
        raise MismatchError(
            f"space '{space}' was embedded with another encoder ({'; '.join(stored.difference(identity))}); "
            f"its fingerprint is {stored.fingerprint()[:16]}, this encoder's {identity.fingerprint()[:16]}",
            remedy="Name the encoder of the space, or fill a new space with '--space NAME --encoder ...'.",
        )


def on_own_gpu(hardware: EncoderHardware, process: str) -> EncoderHardware:
    """The hardware of one process. With several GPUs, processes that were started one after the other take one each."""
    if hardware.gpus == 1:
        return hardware
    number = re.search(r"\d+$", process)
    return replace(hardware, device=f"cuda:{(int(number[0]) - 1 if number else 0) % hardware.gpus}")
