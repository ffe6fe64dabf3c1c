"""Train the language model's tokenizer on the user's own text, before there is a database."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from retrodb.corpus.document import Document, Fields, Limits
from retrodb.corpus.input_files import expand_inputs, plan_splits
from retrodb.corpus.readers import read_split_leniently
from retrodb.corpus.train_tokenizer import train_byte_bpe
from retrodb.errors import InputError, UsageError

_SPLIT_BYTES = 1 << 28  # texts are read one after the other, so splits only limit what is open at once


@dataclass(frozen=True)
class TokenizerResult:
    """A tokenizer that was trained."""

    path: str  # the file, for `retrodb init --tokenizer`
    vocab_size: int  # smaller than asked when the texts have too few pairs
    num_documents: int  # read
    num_characters: int  # read
    num_rejected: int  # records that are not documents


def run_train_tokenizer(inputs: Sequence[str], out: Path, *, vocab_size: int, format: str) -> TokenizerResult:
    """Train a byte-level BPE on the texts of files and write it.

    Raises:
        UsageError: for inputs that name no file, or an output folder that does not exist.
        InputError: for files that cannot be read, or that have no document.
    """
    if not out.absolute().parent.is_dir():
        raise UsageError("no such folder", where=str(out.absolute().parent), remedy="Create it, or give another --out.")
    counts: Counter[str] = Counter()
    tokenizer = train_byte_bpe(_texts(inputs, format, counts), vocab_size)
    if not counts["documents"]:
        raise InputError("no document in the input files", remedy="Check the files and --format.")
    tokenizer.save(out)
    return TokenizerResult(
        path=str(out),
        vocab_size=tokenizer.vocab_size,
        num_documents=counts["documents"],
        num_characters=counts["characters"],
        num_rejected=counts["rejected"],
    )


def _texts(inputs: Sequence[str], format: str, counts: Counter[str]) -> Iterator[str]:
    """The texts of all documents, which are counted on the way."""
    for split in plan_splits(expand_inputs(inputs, format=format), _SPLIT_BYTES):
        for record in read_split_leniently(split, Fields(), Limits()):
            if isinstance(record, Document):
                counts["documents"] += 1
                counts["characters"] += len(record.text)
                yield record.text
            else:
                counts["rejected"] += 1
