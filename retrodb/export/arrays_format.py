"""The `arrays` export as its files and `meta.json` describe it: what the exporter writes and `retrodb.retro.data` reads."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec

from retrodb.errors import FormatVersionError, InputError, MissingFileError

FORMAT, VERSION = "retrodb-arrays", 1
META_FILE = "meta.json"
DIMENSIONS = {
    "tokens": 2,
    "lengths": 1,
    "continuations": 1,
    "query_tokens": 2,
    "query_lengths": 1,
    "query_bytes": 1,
    "query_documents": 1,
    "neighbours": 2,
}
"""Array -> its number of dimensions. Each array is the file `<array>.npy`."""


@dataclass(frozen=True)
class ArraysMeta:
    """`meta.json`. The fields are in the order of the file."""

    format: str  # `FORMAT`
    version: int  # `VERSION`
    chunk_tokens: int  # m
    k: int  # neighbours of a row
    vocab_size: int  # of the language model
    pad_token: int  # the first id outside of the vocabulary
    tokenizer: str  # digest of the tokenizer
    encoder: str = ""  # fingerprint of the encoder whose vectors gave the neighbours; "" when it is not known


def read_arrays_meta(folder: Path) -> ArraysMeta:
    """The description of the `arrays` export in a folder.

    Raises:
        MissingFileError: when there is none.
        FormatVersionError: for an export of a newer retrodb.
        InputError: for a file that is no such description.
    """
    path = folder / META_FILE
    if not path.exists():
        raise MissingFileError("no such file", where=str(path), remedy="Run 'retrodb export DB --to arrays'.")
    try:
        values = msgspec.json.decode(path.read_bytes())
    except msgspec.DecodeError as error:
        raise InputError(f"no JSON ({error})", where=str(path), remedy="Export again.") from error
    try:
        meta = msgspec.convert(values, ArraysMeta)
    except msgspec.ValidationError as error:
        raise _no_meta(path, f" ({error})") from error
    if meta.format != FORMAT:
        raise _no_meta(path)
    if meta.version > VERSION:
        what = f"version {meta.version}, this retrodb reads {VERSION}"
        raise FormatVersionError(what, where=str(path), remedy="Use a newer retrodb, or export again.")
    if meta.pad_token != meta.vocab_size:
        what = f"pad_token is {meta.pad_token}, expected vocab_size, {meta.vocab_size}"
        raise InputError(what, where=str(path), remedy="Export again.")
    return meta


def _no_meta(path: Path, reason: str = "") -> InputError:
    remedy = "Run 'retrodb export DB --to arrays'."
    return InputError(f"not the card of an arrays export{reason}", where=str(path), remedy=remedy)
