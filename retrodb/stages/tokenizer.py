"""Train the language model's tokenizer on the user's own text, before there is a database."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from retrodb.corpus.document import Document, Fields, Limits, Reject
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


def run_train_tokenizer(
    inputs: Sequence[str], out: Path, fields: Fields, *, vocab_size: int, format: str
) -> TokenizerResult:
    """Train a byte-level BPE on the texts of files and write it.

    Raises:
        UsageError: for inputs that name no file, an output folder that does not exist, or a key field without a value field.
        InputError: for files that cannot be read, or that have no document.
    """
    if not out.absolute().parent.is_dir():
        raise UsageError("no such folder", where=str(out.absolute().parent), remedy="Create it, or give another --out.")
    if (fields.key is None) != (fields.value is None):
        raise UsageError("only one of --key-field and --value-field", remedy="A key-value corpus needs both.")
    counts: Counter[str] = Counter()
    rejects: list[Reject] = []
    tokenizer = train_byte_bpe(_texts(inputs, format, fields, counts, rejects), vocab_size)
    if not counts["documents"]:
        raise _no_document(rejects)
    tokenizer.save(out)
    return TokenizerResult(
        path=str(out),
        vocab_size=tokenizer.vocab_size,
        num_documents=counts["documents"],
        num_characters=counts["characters"],
        num_rejected=len(rejects),
    )


def _texts(
    inputs: Sequence[str], format: str, fields: Fields, counts: Counter[str], rejects: list[Reject]
) -> Iterator[str]:
    """The texts of all documents. Counts these, and collects the rejects."""
    for split in plan_splits(expand_inputs(inputs, format=format), _SPLIT_BYTES):
        for record in read_split_leniently(split, fields, Limits()):
            if isinstance(record, Document):
                counts["documents"] += 1
                counts["characters"] += sum(map(len, record.texts))
                yield from record.texts
            else:
                rejects.append(record)


def _no_document(rejects: Sequence[Reject]) -> InputError:
    """The error of inputs without a document. It quotes the first reject."""
    if not rejects:
        return InputError("no document in the input files", remedy="Check the files and --format.")
    first = rejects[0]
    return InputError(
        f"no document in the input files; the first record was rejected as {first.reason} ({first.excerpt})",
        where=f"{first.path}, {first.location}",
        remedy="Check the files and --format. --text-field, or --key-field and --value-field, name other fields.",
    )
