"""A sample of an input: an estimate of its documents and chunks, and a preview of some documents."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice, zip_longest

import numpy as np

from retrodb.config import IngestParams
from retrodb.corpus.chunking import chunk_documents
from retrodb.corpus.document import MISSING_FIELD, TEXT_NAMES, Document, Reject
from retrodb.corpus.lm_tokenizer import Tokenizer
from retrodb.corpus.readers import UNREADABLE_FILE, read_split_leniently
from retrodb.corpus.readers.arrow import parquet_row_groups
from retrodb.corpus.split import InputFile, Split
from retrodb.corpus.streams import InputStream
from retrodb.errors import InputError
from retrodb.stages.ingest.read_tasks import fields_of, limits_of

NUM_PREVIEWS = 5
_FILES, _DOCUMENTS, _CHARS = 64, 512, 4 << 20  # limits of the sample: about a second of one core
_HEAD_BYTES = 1 << 20  # decompressed, to see how far a file expands
_PREVIEW_CHARS = 200
_RECORD_FORMATS = ("jsonl", "json", "dolma", "parquet", "hf-arrow", "csv", "tsv")


@dataclass(frozen=True)
class Preview:
    """A document as it would be ingested."""

    doc_id: str | None  # None: it gets an id made from its content
    text_field: str  # name of the field that has the text; the name of the format when it has no fields
    metadata: str  # JSON
    beginning: str  # of the text
    value: str | None  # beginning of the value of a key-value document


@dataclass(frozen=True)
class InputSample:
    """Estimates for all documents of an input, from some of them."""

    num_files: int
    size_bytes: int  # of all files, as stored
    num_documents: int  # in all files, estimated
    text_bytes: int  # in all files, estimated
    num_chunks: int  # in all files, estimated
    read_s: float  # time for one process to read and tokenize all files, at the rate of the sample
    is_whole: bool  # the sample is the whole input, so the numbers are exact
    previews: tuple[Preview, ...]
    texts: tuple[str, ...]  # of chunks of the sample
    notes: tuple[str, ...] = ()  # about the files: binary files that are skipped, patterns that match no file

    def scaled(self, num_documents: int) -> InputSample:
        """The estimate for some of the documents."""
        fraction = num_documents / self.num_documents if self.num_documents else 0.0
        return replace(
            self,
            num_documents=num_documents,
            text_bytes=round(self.text_bytes * fraction),
            num_chunks=round(self.num_chunks * fraction),
            read_s=self.read_s * fraction,
            is_whole=self.is_whole and fraction == 1,
        )


@dataclass(frozen=True)
class Head:
    """The first documents of a file."""

    file: InputFile
    documents: list[Document]
    stored_bytes: int  # that they take in the file
    is_whole: bool  # the file has no other documents
    rejected: Reject | None  # the first rejected record


def sample_inputs(
    files: Sequence[InputFile], params: IngestParams, tokenizer: Tokenizer, chunk_tokens: int
) -> InputSample:
    """Read and tokenize some documents from files across the input.

    Raises:
        InputError: the sample has no document. It names the reason of the first rejected record.
    """
    import pyarrow as pa

    started = time.perf_counter()
    heads = read_heads(files, params)
    read_s = time.perf_counter() - started
    documents = [document for head in heads for document in head.documents]
    texts = pa.array([document.text for document in documents], pa.large_string())
    values = pa.array([document.value for document in documents], pa.large_string())
    chunk_documents(texts[:1], values[:1], tokenizer, chunk_tokens)  # the first call is slow
    started = time.perf_counter()
    chunks = chunk_documents(texts, values, tokenizer, chunk_tokens)
    read_s += time.perf_counter() - started
    size_bytes = sum(file.size_bytes for file in files)
    are_whole = all(head.is_whole for head in heads)
    is_whole = are_whole and len(heads) == len(files)
    scale = 1.0 if is_whole else max(1.0, size_bytes / sum(head.stored_bytes for head in heads))
    return InputSample(
        num_files=len(files),
        size_bytes=size_bytes,
        # When all sampled files are whole, the number of files predicts better than bytes, which a few long files dominate.
        num_documents=round(len(documents) * (len(files) / len(heads) if are_whole else scale)),
        text_bytes=round(sum(len((d.text + (d.value or "")).encode()) for d in documents) * scale),
        num_chunks=round(len(chunks.document) * scale),
        read_s=read_s * scale,
        is_whole=is_whole,
        previews=tuple(_previews(heads, params)),
        texts=tuple(chunks.text.to_pylist()),
    )


def read_heads(
    files: Sequence[InputFile], params: IngestParams, *, documents: int = _DOCUMENTS, chars: int = _CHARS
) -> list[Head]:
    """The first documents of files across the input.

    Args:
        documents, chars: limits of all heads together, about.

    Raises:
        InputError: there is no document. It names the reason of the first rejected record.
    """
    if not files:
        raise InputError("the inputs have no file to read", remedy="Name files, or folders with files.")
    chosen = sorted(set(np.linspace(0, len(files) - 1, min(len(files), _FILES)).astype(int).tolist()))
    limits = documents / len(chosen), chars / len(chosen)
    heads = [_read_head(files[index], params, *limits) for index in chosen]
    if any(head.documents for head in heads):
        return heads
    rejected = next((head.rejected for head in heads if head.rejected), None)
    reason = f" ({rejected.reason})" if rejected else ""
    if rejected and rejected.reason == UNREADABLE_FILE:
        reason = f" ({rejected.excerpt})"
    elif rejected and rejected.reason in MISSING_FIELD:
        reason = f" ({rejected.reason}; {rejected.excerpt})"
    raise InputError(
        f"no document in a sample of the files{reason}",
        where=f"{rejected.path}, {rejected.location}" if rejected else files[0].path,
        remedy="Check the files. Use --format, --text-field, --id-field, --key-field and --value-field to say how they are read.",
    )


def _read_head(file: InputFile, params: IngestParams, most_documents: float, most_chars: float) -> Head:
    documents: list[Document] = []
    rejected: Reject | None = None
    chars = 0
    for records, record in enumerate(read_split_leniently(Split((file,)), fields_of(params), limits_of(params))):
        if len(documents) >= most_documents or chars >= most_chars:
            return Head(file, documents, _stored_bytes(file, records, record.location, documents), False, rejected)
        if isinstance(record, Document):
            documents.append(record)
            chars += len(record.text) + len(record.value or "")
        else:
            rejected = rejected or record
    return Head(file, documents, file.size_bytes, True, rejected)


def _stored_bytes(file: InputFile, records: int, next_location: str, documents: list[Document]) -> int:
    """About how many bytes of a file its first records take, given the location of the record after them."""
    if file.format == "parquet" and not file.is_tar and (rows := sum(parquet_row_groups(file.disk_path))):
        return max(1, file.size_bytes * records // rows)
    unit, _, number = next_location.partition(" ")
    if unit == "byte" and not file.is_tar:
        size = int(number.partition(",")[0])
    else:
        size = sum(len(d.text.encode()) + len((d.value or "").encode()) + len(d.metadata) for d in documents)
    return min(max(1, round(size * _stored_fraction(file))), file.size_bytes)


def _stored_fraction(file: InputFile) -> float:
    """Stored bytes per decompressed byte, at the beginning of the file."""
    if file.compression == "none":
        return 1.0
    with open(file.disk_path, "rb") as source, InputStream(source, file.compression, file.path) as stream:
        num_read = len(stream.read(_HEAD_BYTES))
        return source.tell() / max(num_read, 1)


def _previews(heads: Sequence[Head], params: IngestParams) -> Iterator[Preview]:
    """The first document of each file, then the second ones, and so on."""
    turns = zip_longest(*(head.documents[:NUM_PREVIEWS] for head in heads))
    pairs = ((head, document) for turn in turns for head, document in zip(heads, turn, strict=True) if document)
    for head, document in islice(pairs, NUM_PREVIEWS):
        yield Preview(
            doc_id=document.doc_id,
            text_field=_text_field(head.file, params),
            metadata=document.metadata.decode(),
            beginning=document.text[:_PREVIEW_CHARS],
            value=None if document.value is None else document.value[:_PREVIEW_CHARS],
        )


def _text_field(file: InputFile, params: IngestParams) -> str:
    """The name of the field that has the text of a file's first record."""
    if params.key_field or params.text_field or file.format not in _RECORD_FORMATS:
        return params.key_field or params.text_field or file.format
    for name in TEXT_NAMES:
        first = next(
            read_split_leniently(Split((file,)), replace(fields_of(params), text=name), limits_of(params)), None
        )
        if first is not None and not (isinstance(first, Reject) and first.reason == "no-text-field"):
            return name
    return "?"
