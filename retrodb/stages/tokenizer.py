"""Training the language model's tokenizer on the user's own text, before there is a database."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from retrodb.corpus.document import Document, Fields, Limits
from retrodb.corpus.input_files import expand_inputs, plan_splits
from retrodb.corpus.readers import read_split
from retrodb.corpus.train_tokenizer import train_byte_bpe
from retrodb.errors import InputError, UsageError

_SPLIT_BYTES = 1 << 28  # splits only bound what is open at once: texts are read one after the other


@dataclass(frozen=True)
class TokenizerResult:
    """A tokenizer that was trained."""

    path: str  # the file, for `retrodb init --tokenizer`
    vocab_size: int  # below what was asked for when the texts ran out of pairs
    documents: int  # read
    characters: int  # read
    rejected: int  # records that are no documents


def run_train_tokenizer(inputs: Sequence[str], out: Path, *, vocab_size: int, format: str) -> TokenizerResult:
    """Train a byte-level BPE on the texts of files and write it.

    Raises:
        UsageError: for inputs that name no file, or a place where nothing can be written.
        InputError: for files that cannot be read, or hold no document.
    """
    if not out.absolute().parent.is_dir():
        raise UsageError("no such folder", where=str(out.absolute().parent), remedy="Create it, or name another --out.")
    counts = dict.fromkeys(("documents", "characters", "rejected"), 0)
    tokenizer = train_byte_bpe(_texts(inputs, format, counts), vocab_size)
    if not counts["documents"]:
        raise InputError("no document in the input files", remedy="Look at the files, and at --format.")
    tokenizer.save(out)
    return TokenizerResult(str(out), tokenizer.vocab_size, **counts)


def _texts(inputs: Sequence[str], format: str, counts: dict[str, int]) -> Iterator[str]:
    """The texts of all documents, counted as they pass."""
    for split in plan_splits(expand_inputs(inputs, format=format), _SPLIT_BYTES):
        for record in read_split(split, Fields(), Limits()):
            if isinstance(record, Document):
                counts["documents"] += 1
                counts["characters"] += len(record.text)
                yield record.text
            else:
                counts["rejected"] += 1
