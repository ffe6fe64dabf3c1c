"""`retrodb.toml`: what can never change in a database."""

from __future__ import annotations

from dataclasses import dataclass

from retrodb.config import dump_toml, from_mapping, parse_toml, to_mapping
from retrodb.errors import ConfigError, DamagedFileError, FormatVersionError
from retrodb.format import FORMAT_VERSION
from retrodb.printable import escape

MAX_CHUNK_TOKENS = 4096


@dataclass(frozen=True)
class Settings:
    """The settings of a database, fixed at `init`."""

    chunk_tokens: int  # tokens of one chunk
    min_key_tokens: int  # a shorter tail of a document serves as continuation only
    tokenizer_name: str  # what the user called it; provenance only
    tokenizer_sha256: str  # digest of tokenizer.json, hexadecimal
    vocab_size: int  # token ids are below it
    token_dtype: str  # "uint16" or "uint32", by the vocabulary
    pad_token: int  # fills fixed-stride rows behind a chunk's last token; lengths tell where it begins
    format_version: int = FORMAT_VERSION


def parse_settings(text: str, *, where: str) -> Settings:
    """Read `retrodb.toml`.

    Raises:
        FormatVersionError: when a newer or an older retrodb wrote it.
        DamagedFileError: when it is not as retrodb writes it.
    """
    try:
        values = parse_toml(text, where=where)
        version = values.get("format_version")
        if isinstance(version, int) and version > FORMAT_VERSION:
            raise FormatVersionError(
                f"format version {version} is newer than {FORMAT_VERSION}, the newest this retrodb reads",
                where=where,
                remedy="Install a newer retrodb: pip install --upgrade retrodb.",
            )
        if isinstance(version, int) and version < FORMAT_VERSION:
            raise FormatVersionError(
                f"format version {version}, which this retrodb does not read: it reads and writes {FORMAT_VERSION}",
                where=where,
                remedy="Build the database again with 'retrodb build', in another folder, from the files of its recipe.toml.",
            )
        settings = from_mapping(Settings, values, where=where)
        if fault := _fault(settings):
            raise ConfigError(fault, where=where)
        return settings
    except ConfigError as error:
        raise DamagedFileError(
            f"damaged settings ({error.what})", where=where, remedy="Restore this file from a backup."
        ) from error


def _fault(settings: Settings) -> str:
    """What no `init` writes: a damaged file can be valid TOML. "" if nothing is wrong."""
    if settings.token_dtype not in ("uint16", "uint32"):
        return f"token_dtype is '{escape(settings.token_dtype)}'"
    if not 1 <= settings.chunk_tokens <= MAX_CHUNK_TOKENS:
        return f"chunk_tokens is {settings.chunk_tokens}"
    if not 0 <= settings.pad_token < settings.vocab_size or not 0 <= settings.min_key_tokens <= settings.chunk_tokens:
        return f"pad_token is {settings.pad_token}, vocab_size {settings.vocab_size}, min_key_tokens {settings.min_key_tokens}"
    return ""


def dump_settings(settings: Settings) -> str:
    """The text of `retrodb.toml`, the format version first."""
    values = to_mapping(settings)
    return dump_toml({"format_version": values.pop("format_version"), **values})
