"""Query sets of token ids, as a training pipeline produces them: one chunk per row of an array.

The rows of the query set are the rows of the array, in their order. Each is a sequence of one chunk. A second array names
the documents that must not become neighbours of each row.
"""

from __future__ import annotations

import os
import stat
import struct
import sys
import tokenize
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from retrodb.errors import InputError, UsageError
from retrodb.format.arrays import AnyArray
from retrodb.format.entries import QueriesEntry
from retrodb.format.json_codec import to_plain_object
from retrodb.stages.queries.known_tokens import KnownTokens
from retrodb.stages.queries.packing import PackedSequence
from retrodb.store.digest import digest_file, identity
from retrodb.view.view import View

_NO_TOKEN = -1  # padding of a short row
_NPY = b"\x93NUMPY"  # first bytes of a .npy file
_HEADER_ERRORS = (
    *(ValueError, EOFError, SyntaxError, TypeError, KeyError, IndexError, AttributeError, OverflowError, MemoryError),
    *(RecursionError, struct.error, tokenize.TokenError),
)
"""What NumPy raises for a header that is no dtype, shape and order."""


@dataclass(frozen=True)
class TokenPacking:
    """Two arrays on disk."""

    kind: ClassVar[str] = "tokens"
    tokens: str  # path of a .npy (Q, m) of token ids of the database's tokenizer, -1 after the end of a short row
    doc_ids: str | None  # path of a .npy (Q,) or (Q, any) of names, `source/id` or an id alone; "" and -1 for none
    seq_length: int  # m

    @classmethod
    def of(cls, tokens: str, doc_ids: str | None) -> TokenPacking:
        """The packing of two files.

        Raises:
            UsageError: for a file that does not exist.
            InputError: for a file that is not such an array.
        """
        tokens, doc_ids = str(Path(tokens).resolve()), str(Path(doc_ids).resolve()) if doc_ids else None
        array = _mapped(tokens)
        if array.ndim != 2 or array.dtype.kind not in "iu" or not array.size:
            what = f"{array.dtype} of shape {array.shape}, expected rows of token ids"
            raise InputError(what, where=tokens, remedy="Save an integer array (rows, chunk tokens) with numpy.save.")
        if doc_ids is not None:
            names = _mapped(doc_ids)
            if names.dtype.kind not in "iuU" or names.ndim not in (1, 2) or len(names) != len(array):
                what = f"{names.dtype} of shape {names.shape} cannot name the documents of {len(array)} rows"
                raise InputError(what, where=doc_ids, remedy="Save one name a row, or several, as text or integers.")
            _refuse_no_unicode(names, doc_ids)
        return cls(tokens, doc_ids, array.shape[1])

    def entry(self, tokenizer: str) -> QueriesEntry:
        """The entry of a query set of these rows, without its content."""
        packing = to_plain_object(self)
        return QueriesEntry(self.kind, seq_length=self.seq_length, tokenizer=tokenizer, tokens=packing)

    def state(self, view: View, known: KnownTokens) -> str:
        """A digest of everything that the rows follow from.

        Raises:
            UsageError: when the rows have another length than the chunks of this database.
            InputError: for a row without tokens.
            MismatchError: for tokens that the tokenizer does not have; names the first one.
        """
        if self.seq_length != view.settings.chunk_tokens:
            raise UsageError(
                f"rows have {self.seq_length} tokens and chunks {view.settings.chunk_tokens}", where=self.tokens
            )
        array = _mapped(self.tokens)
        for row, tokens in enumerate(array):
            length = _length(tokens)
            if length == 0:
                raise InputError(f"row {row} has no tokens", where=self.tokens, remedy="Leave this row out.")
            known.refuse_others(tokens[:length], where=self.tokens, place=f"row {row}")
        paths = [path for path in (self.tokens, self.doc_ids) if path]
        return identity([digest_file(Path(path)).sha256.hex() for path in paths])


class TokenRows:
    """The rows as sequences of one chunk."""

    def __init__(self, packing: TokenPacking) -> None:
        self._file, self._tokens = packing.tokens, _mapped(packing.tokens)
        self._names = None if packing.doc_ids is None else _mapped(packing.doc_ids)

    def __len__(self) -> int:
        return len(self._tokens)

    def read(self, start: int, stop: int) -> Iterator[PackedSequence]:
        """Rows number `start` up to `stop`."""
        for row in range(start, stop):
            tokens = self._tokens[row]
            names = [] if self._names is None else np.unique(self._names[row]).tolist()
            documents = [str(name) for name in names if name not in ("", _NO_TOKEN)]
            yield PackedSequence(tokens[: _length(tokens)].astype(np.int64), documents, self._file, f"row {row}")


def named_documents(path: str) -> list[str]:
    """The different names in a file of names."""
    return [str(name) for name in np.unique(_mapped(path)).tolist() if name not in ("", _NO_TOKEN)]


def _length(tokens: AnyArray) -> int:
    """Number of tokens before the padding."""
    return len(tokens) - int((tokens[::-1] != _NO_TOKEN).argmax()) if (tokens != _NO_TOKEN).any() else 0


def _mapped(path: str) -> AnyArray:
    remedy = "Save one array of numbers or text with numpy.save."
    try:
        if stat.S_ISFIFO(os.stat(path).st_mode):
            raise InputError("a pipe cannot be read as an array", where=path, remedy=remedy)
        with open(path, "rb") as file:
            head = file.read(len(_NPY))
        if head != _NPY:
            what = "a .npz archive of arrays, not" if head.startswith(b"PK") else "not"
            raise InputError(f"{what} a .npy file", where=path, remedy=remedy)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about headers that Python 2 wrote
            array: AnyArray = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError as error:
        raise UsageError("no such file", where=path) from error
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror or error})", where=path) from error
    except _HEADER_ERRORS as error:
        raise InputError(f"not a .npy file of numbers or text ({error})", where=path, remedy=remedy) from error
    return array


def _refuse_no_unicode(names: AnyArray, path: str) -> None:
    """Raises InputError for a text array with code points that no text has."""
    if names.dtype.kind != "U" or not names.size:
        return
    codes = np.ascontiguousarray(names).astype(names.dtype.newbyteorder("=")).view(np.uint32).reshape(len(names), -1)
    is_wrong = ((codes > sys.maxunicode) | ((codes >= 0xD800) & (codes < 0xE000))).any(axis=1)
    if is_wrong.any():
        raise InputError(f"row {int(is_wrong.argmax())} is not Unicode", where=path, remedy="Save the names as text.")
