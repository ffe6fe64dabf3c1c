"""Query sets of token ids, as a training pipeline produces them: one chunk per row of an array.

The rows of the query set are the rows of the array, in their order. Each is a sequence of one chunk. A second array names
the documents that must not become neighbours of each row.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from retrodb.corpus.special_tokens import all_special_ids
from retrodb.errors import InputError, MismatchError, UsageError
from retrodb.format.arrays import AnyArray
from retrodb.format.entries import QueriesEntry
from retrodb.format.json_codec import to_plain_object
from retrodb.stages.queries.packing import PackedSequence
from retrodb.store.digest import digest_file, identity
from retrodb.view.view import View

_NO_TOKEN = -1  # padding of a short row


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
        return cls(tokens, doc_ids, array.shape[1])

    def entry(self, tokenizer: str) -> QueriesEntry:
        """The entry of a query set of these rows, without its content."""
        packing = to_plain_object(self)
        return QueriesEntry(self.kind, seq_length=self.seq_length, tokenizer=tokenizer, tokens=packing)

    def state(self, view: View) -> str:
        """A digest of everything that the rows follow from.

        Raises:
            UsageError: when the rows have another length than the chunks of this database.
            MismatchError: for tokens that its tokenizer does not have; names the first such row.
        """
        if self.seq_length != view.settings.chunk_tokens:
            raise UsageError(
                f"rows have {self.seq_length} tokens and chunks {view.settings.chunk_tokens}", where=self.tokens
            )
        array = _mapped(self.tokens)
        special = all_special_ids(view.storage.read("tokenizer.json"))
        num_tokens = max(view.settings.vocab_size, 1 + max(special, default=0))
        for row, tokens in enumerate(array):
            length = _length(tokens)
            if length == 0 or tokens[:length].min() < 0 or tokens[:length].max() >= num_tokens:
                raise MismatchError(
                    f"row {row} holds token ids outside of the database's tokenizer (0 to {num_tokens - 1})",
                    where=self.tokens,
                    remedy="Use a database with the tokenizer of the training set.",
                )
        paths = [path for path in (self.tokens, self.doc_ids) if path]
        return identity([digest_file(Path(path)).sha256.hex() for path in paths])


class TokenRows:
    """The rows as sequences of one chunk."""

    def __init__(self, packing: TokenPacking) -> None:
        self._tokens = _mapped(packing.tokens)
        self._names = None if packing.doc_ids is None else _mapped(packing.doc_ids)

    def __len__(self) -> int:
        return len(self._tokens)

    def read(self, start: int, stop: int) -> Iterator[PackedSequence]:
        """Rows number `start` up to `stop`."""
        for row in range(start, stop):
            tokens = self._tokens[row]
            names = [] if self._names is None else np.unique(self._names[row]).tolist()
            documents = [str(name) for name in names if name not in ("", _NO_TOKEN)]
            yield PackedSequence(tokens[: _length(tokens)].astype(np.int64), documents)


def named_documents(path: str) -> list[str]:
    """The different names in a file of names."""
    return [str(name) for name in np.unique(_mapped(path)).tolist() if name not in ("", _NO_TOKEN)]


def _length(tokens: AnyArray) -> int:
    """Number of tokens before the padding."""
    return len(tokens) - int((tokens[::-1] != _NO_TOKEN).argmax()) if (tokens != _NO_TOKEN).any() else 0


def _mapped(path: str) -> AnyArray:
    try:
        array: AnyArray = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError as error:
        raise UsageError("no such file", where=path) from error
    except (ValueError, EOFError, OSError) as error:
        raise InputError(f"not a .npy file of numbers or text ({error})", where=path) from error
    return array
