"""The plan of an embed run, and its result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from retrodb.ann.supported_factory import check_factory
from retrodb.config import EmbedParams, from_mapping, to_mapping
from retrodb.encode.encoder import Encoder
from retrodb.errors import UsageError
from retrodb.format.entries import IndexEntry, SpaceEntry
from retrodb.stages.context import Context
from retrodb.stages.embed.pending import PendingRows, find_pending_rows
from retrodb.stages.embed.rate import Rates
from retrodb.stages.embed.space_encoder import EncoderHardware, check_identity, load_encoder
from retrodb.view.view import SELF, View


@dataclass(frozen=True)
class EmbedResult:
    """What an embed run did."""

    snapshot: int
    space: str
    encoder: str
    dimension: int
    metric: str
    num_chunks: int  # that got a vector
    num_reused: int  # rows that got the vector of an equal text
    num_query_rows: int  # rows of query sets that got a vector
    num_tokens: int  # of the encoder, special tokens included
    num_truncated: int  # texts longer than the encoder's maximum, of which only the beginning was read
    device: str
    compute_dtype: str
    batch_tokens: int  # token budget of a batch; 0 where there are no batches
    rates: Rates | None = None  # of the vectors that this run computed; of a sample in a dry run
    codes_recall: float | None = None  # recall@10 of the codes where vectors are not kept
    note: str = ""  # how the run differs from its plan
    dry_run: bool = False


@dataclass(frozen=True)
class EmbedPlan:
    """What an embed run computes."""

    view: View
    space: str
    entry: SpaceEntry
    is_new_space: bool
    params: EmbedParams
    hardware: EncoderHardware
    pending: tuple[PendingRows, ...]
    result: EmbedResult  # that a dry run prints, without the rates


def plan_embed(
    context: Context, options: Mapping[str, object], hardware: EncoderHardware, *, space: str | None = None
) -> EmbedPlan:
    """Find the rows to embed. Loads the encoder, because its identity is compared with that of the space.

    Args:
        options: fields of `EmbedParams`, None for not given. For a space that exists they must give the same identity.

    Raises:
        MismatchError: when the encoder is not that of the space; the message shows the difference.
        UsageError: for a new space without an encoder.
        ConfigError: for a factory that cannot be indexed by.
    """
    view = context.view()
    name = space or view.snapshot.default_space
    params = _params(view, name, options)
    hardware = replace(hardware, threads=context.num_workers, gpus=_num_gpus(params, hardware.device))
    encoder = load_encoder(params, hardware)
    stored = view.snapshot.entry(SpaceEntry, name)
    if stored is not None:
        check_identity(name, stored, encoder.identity)
    entry = stored or _entry(params, encoder)
    if params.factory is not None and view.snapshot.entry(IndexEntry, name) is None:
        check_factory(params.factory, entry.dimension, entry.metric)
    pending = find_pending_rows(context, view, name)
    result = EmbedResult(
        snapshot=view.snapshot.number,
        space=name,
        encoder=params.encoder,
        dimension=entry.dimension,
        metric=entry.metric,
        num_chunks=sum(part.num_rows for part in pending if part.query_set == SELF),
        num_reused=0,
        num_query_rows=sum(part.num_rows for part in pending if part.query_set != SELF),
        num_tokens=0,
        num_truncated=0,
        device=encoder.provenance.device,
        compute_dtype=encoder.provenance.compute_dtype,
        batch_tokens=encoder.provenance.batch_tokens,
        dry_run=True,
    )
    return EmbedPlan(view, name, entry, stored is None, params, hardware, pending, result)


def _num_gpus(params: EmbedParams, device: str) -> int:
    if params.encoder.startswith("hashing:"):
        return 1
    from retrodb.encode.device import num_gpus

    return num_gpus(device)


def _params(view: View, name: str, options: Mapping[str, object]) -> EmbedParams:
    given = {key: value for key, value in options.items() if value is not None}
    entry = view.snapshot.entry(SpaceEntry, name)
    if entry is not None:
        if "keep_vectors" in given and given["keep_vectors"] != (entry.params.keep_vectors is not False):
            raise UsageError(
                f"space '{name}' {'does not keep' if given['keep_vectors'] else 'keeps'} its vectors",
                remedy="Fill a new space with '--space NAME --encoder ...'.",
            )
        return from_mapping(EmbedParams, {**to_mapping(entry.params), **given}, where=f"space '{name}'")
    default = view.snapshot.default_encoder if name == view.snapshot.default_space else None
    if default is None and "encoder" not in given:
        raise UsageError(f"space '{name}' is new and no encoder is named", remedy="Add '--encoder FOLDER-OR-NAME'.")
    defaults = {} if default is None or "encoder" in given else to_mapping(default.params)
    params = from_mapping(EmbedParams, {**defaults, **given}, where="options")
    if params.factory is not None and params.keep_vectors is not False:
        raise UsageError(
            "a factory needs '--no-keep-vectors'", remedy="Add '--no-keep-vectors', or give it to 'retrodb index'."
        )
    return params


def _entry(params: EmbedParams, encoder: Encoder) -> SpaceEntry:
    identity = encoder.identity
    return SpaceEntry(params, identity.to_json(), identity.fingerprint(), identity.dimension, identity.metric)
