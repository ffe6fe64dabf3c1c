"""Stage init: an empty database with its tokenizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from retrodb.config import EmbedParams, InitParams
from retrodb.corpus.lm_tokenizer import Tokenizer
from retrodb.corpus.tokenizer_files import resolve_tokenizer
from retrodb.encode.check import check_encoder
from retrodb.engine.run import open_run
from retrodb.errors import ConflictError, UsageError
from retrodb.format.entries import DEFAULT_ENCODER_KEY, DEFAULT_SPACE_KEY, DefaultEncoder, DefaultSpace
from retrodb.format.json_codec import to_plain, to_plain_object
from retrodb.format.kinds import kind_of, path_of
from retrodb.format.records import FileRecord
from retrodb.format.settings import MAX_CHUNK_TOKENS, Settings, dump_settings
from retrodb.format.snapshot import Snapshot
from retrodb.stages.context import Context
from retrodb.store.commit import Change, commit_first
from retrodb.store.conflict_keys import ConflictKeys
from retrodb.store.digest import digest_bytes, identity
from retrodb.store.snapshots import read_head, snapshot_numbers
from retrodb.store.storage import Storage
from retrodb.store.temporary import is_temporary

RETRO_ENCODER = EmbedParams("bert-base-uncased", pooling="mean", normalise=False, metric="squared_l2")
"""The encoder of the preset `retro`, as in the paper: mean over the tokens, no normalisation, squared L2."""


@dataclass(frozen=True)
class InitPlan:
    """What a new database is going to have."""

    params: InitParams
    settings: Settings  # that never change
    tokenizer: bytes  # content of the tokenizer's file
    encoder: EmbedParams  # of the default space


def run_init(context: Context, params: InitParams, *, written: Sequence[str] = ()) -> Snapshot:
    """Create a database.

    Args:
        written: files that the caller has already written for the new database.

    Raises:
        ConflictError: a database, or any other file, exists there already.
        UsageError: for invalid settings.
        InputError: for a tokenizer or an encoder that cannot be loaded.
    """
    return execute_init(context, plan_init(params), written=written)


def plan_init(params: InitParams) -> InitPlan:
    """What a new database would have; nothing is written.

    Raises:
        UsageError, InputError: as `run_init`.
    """
    if not 1 <= params.chunk_tokens <= MAX_CHUNK_TOKENS:
        raise UsageError(
            f"chunks of {params.chunk_tokens} tokens", remedy="--chunk-tokens is from 1 to 4096; the paper's is 64."
        )
    if params.preset not in (None, "retro"):
        raise UsageError(f"unknown preset '{params.preset}'", remedy="The only preset is 'retro'.")
    tokenizer = resolve_tokenizer(params.tokenizer)
    data = tokenizer.to_bytes()
    encoder = RETRO_ENCODER if params.preset == "retro" else EmbedParams(params.encoder)
    check_encoder(encoder)
    return InitPlan(params, _settings(params, tokenizer, data), data, encoder)


def execute_init(context: Context, plan: InitPlan, *, written: Sequence[str] = ()) -> Snapshot:
    """Write the settings and the tokenizer, and commit the first snapshot.

    Raises:
        ConflictError: a database, or any other file, exists there already.
    """
    storage = context.storage
    values = {"settings": to_plain(plan.settings), "params": to_plain(plan.params)}
    if snapshot_numbers(storage):
        head = read_head(storage)
        if head.number == 0 and head.transaction == identity("init", values):
            return head
        raise ConflictError(
            "a database exists here already", where=storage.url, remedy="Choose another path, or use it as it is."
        )
    contents = {"tokenizer": plan.tokenizer, "settings": dump_settings(plan.settings).encode()}
    own_files = {path_of(kind): content for kind, content in contents.items()}
    refuse_used_folder(storage, {**dict.fromkeys(written), **own_files})
    storage.probe()
    run = open_run(storage, "init", values, context.clock)
    files = []
    for kind, content in contents.items():
        if not storage.put_if_absent(path_of(kind), content) and storage.read(path_of(kind)) != content:
            raise _used(storage, path_of(kind))
        files.append(FileRecord(kind, "", path_of(kind), digest_bytes(content)))
    change = Change(
        transaction=run.id,
        command="init",
        arguments=to_plain_object(plan.params),
        clock=run.clock,
        conflict_keys=ConflictKeys(frozenset(), frozenset()),
        files=files,
        entries={DEFAULT_SPACE_KEY: DefaultSpace("default"), DEFAULT_ENCODER_KEY: DefaultEncoder(plan.encoder)},
    )
    return commit_first(storage, change)


def refuse_used_folder(storage: Storage, written: Mapping[str, bytes | None]) -> None:
    """A new database needs a folder without files, so that it never overwrites or collects a file of somebody else.

    Args:
        written: files that an interrupted creation of this database may have written, with their content; None is any.

    Raises:
        ConflictError: names the first file that is there.
    """
    for path in storage.list(""):
        is_unfinished = kind_of(path) in ("runs", "manifests") or is_temporary(path) or path.startswith("locks/")
        content = written.get(path)
        is_written = path in written and (content is None or storage.read(path) == content)
        if not (is_unfinished or is_written):
            raise _used(storage, path)


def _used(storage: Storage, path: str) -> ConflictError:
    return ConflictError(
        f"the folder is not empty: it contains '{path}'",
        where=storage.url,
        remedy="Choose a new path or an empty folder for the database.",
    )


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
