"""Stage init: an empty database with its tokenizer."""

from __future__ import annotations

from retrodb.config import EmbedParams, InitParams, from_mapping, to_mapping
from retrodb.corpus.lm_tokenizer import Tokenizer
from retrodb.corpus.tokenizer_files import resolve_tokenizer
from retrodb.engine.run import open_run
from retrodb.errors import ConflictError, UsageError
from retrodb.format.entries import DEFAULT_ENCODER_KEY, DEFAULT_SPACE_KEY, DefaultEncoder, DefaultSpace
from retrodb.format.kinds import path_of
from retrodb.format.records import FileRecord
from retrodb.format.settings import Settings, dump_settings
from retrodb.format.snapshot import Snapshot
from retrodb.stages.context import Context
from retrodb.store.commit import Change, create
from retrodb.store.conflict_keys import ConflictKeys
from retrodb.store.digest import digest_bytes, identity
from retrodb.store.snapshots import read_head, snapshot_numbers

PRESETS = {
    None: {},
    "retro": {"encoder": "bert-base-uncased", "pooling": "mean", "normalise": False, "metric": "squared_l2"},
}
"""Defaults of the default space; `retro` is the paper's: mean over time, no normalisation, squared L2."""


def run_init(context: Context, params: InitParams) -> Snapshot:
    """Create a database.

    Raises:
        ConflictError: when there is one already.
        UsageError: for impossible settings.
        InputError: for a tokenizer that cannot be had.
    """
    storage = context.storage
    settings, data = plan_init(params)
    plan = {"settings": to_mapping(settings), "params": to_mapping(params)}
    if snapshot_numbers(storage):
        head = read_head(storage)
        if head.number == 0 and head.transaction == identity("init", plan):
            return head
        raise ConflictError(
            "a database exists here already", where=storage.url, remedy="Choose another path, or use it as it is."
        )
    run = open_run(storage, "init", plan, context.clock)
    toml = dump_settings(settings).encode()
    files = []
    for kind, content in (("tokenizer", data), ("settings", toml)):
        storage.write(path_of(kind), content)
        files.append(FileRecord(kind, "", path_of(kind), digest_bytes(content)))
    encoder = from_mapping(EmbedParams, {"encoder": params.encoder, **PRESETS[params.preset]}, where="preset")
    change = Change(
        transaction=run.id,
        command="init",
        arguments=to_mapping(params),
        clock=run.clock,
        conflict_keys=ConflictKeys(frozenset(), frozenset()),
        files=files,
        entries={DEFAULT_SPACE_KEY: DefaultSpace("default"), DEFAULT_ENCODER_KEY: DefaultEncoder(encoder)},
    )
    return create(storage, change)


def plan_init(params: InitParams) -> tuple[Settings, bytes]:
    """What a new database would be fixed to, and its tokenizer's file; nothing is written.

    Raises:
        UsageError, InputError: as `run_init`.
    """
    if not 1 <= params.chunk_tokens <= 4096:
        raise UsageError(
            f"chunks of {params.chunk_tokens} tokens", remedy="--chunk-tokens is from 1 to 4096; the paper's is 64."
        )
    if params.preset not in PRESETS:
        raise UsageError(f"unknown preset '{params.preset}'", remedy="The only preset is 'retro'.")
    tokenizer = resolve_tokenizer(params.tokenizer)
    data = tokenizer.to_bytes()
    return _settings(params, tokenizer, data), data


def _settings(params: InitParams, tokenizer: Tokenizer, data: bytes) -> Settings:
    return Settings(
        chunk_tokens=params.chunk_tokens,
        min_key_tokens=min(params.min_key_tokens, params.chunk_tokens),
        tokenizer_name=params.tokenizer,
        tokenizer_sha256=digest_bytes(data).sha256.hex(),
        vocab_size=tokenizer.vocab_size,
        token_dtype=str(tokenizer.token_dtype),
        pad_token=0,
    )
