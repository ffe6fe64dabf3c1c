"""Parameters of the stages as frozen dataclasses, and their conversion from and to TOML.

A parameter object states what a command has to do, and not how the machine does it. It is hashed into the identity of
the command's tasks, so two runs with equal parameters do the same work. Worker counts, devices, memory limits and
progress bars are therefore not fields of these classes. `retrodb/options.py` has the same fields as keyword arguments.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias, TypeVar

from retrodb.errors import ConfigError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T", bound="DataclassInstance")

PlainValue: TypeAlias = "bool | int | float | str | Sequence[PlainValue] | Mapping[str, PlainValue] | None"
"""A value that TOML and JSON can hold."""

# fmt: off
EXPORT_FORMATS = (
    "parquet", "huggingface", "arrays", "megatron", "lucidrains", "norlund", "nemo", "dpr", "atlas",
)
# fmt: on
"""The export formats; `export/export.py` has their writers."""


@dataclass(frozen=True)
class InitParams:
    """The properties that can never change once a database exists."""

    tokenizer: str  # tokenizer of the language model: a file, a folder or a Hugging Face name
    chunk_tokens: int = 64  # tokens per chunk (m in the paper)
    min_key_tokens: int = 8  # a shorter last chunk of a document is not embedded; it is only a continuation
    encoder: str = "sentence-transformers/all-MiniLM-L6-v2"  # encoder of the default space
    preset: str | None = None  # "retro": encoder and metric of the paper


@dataclass(frozen=True)
class IngestParams:
    """How the records of input files become documents of one source."""

    source: str  # name of the source; document ids are unique within it
    format: str = "auto"  # input format; "auto" detects it from the content
    id_field: str | None = None  # record field with the document id; None tries common names
    text_field: str | None = None  # record field with the text; None tries common names
    key_field: str | None = None  # key-value corpora: field that is embedded
    value_field: str | None = None  # key-value corpora: field that becomes the continuation of the key
    metadata_fields: tuple[str, ...] | None = None  # record fields to keep as metadata; None keeps all
    drop_metadata: bool = False  # keep no metadata at all
    include: tuple[str, ...] = ()  # patterns of the input files to read, such as "*.md"; empty: all
    exclude: tuple[str, ...] = ()  # patterns of input files not to read
    marker: str | None = None  # text between two documents of a plain-text file; None: each file is one document
    front_matter: str = "text"  # headers of text and Markdown files become "text" or "metadata"
    mirror: bool = False  # delete documents of the source that are no longer in the input
    limit: int | None = None  # read only the first N records; input files are not marked as read
    holdout: float = 0.0  # fraction of documents to hold out for evaluation, chosen by a hash of the id
    max_document_chars: int = 100_000_000  # longer documents are handled as `oversize` says
    oversize: str = "reject"  # "reject" or "split"
    max_record_bytes: int = 1 << 28  # size limit of one decompressed record
    max_reject_rate: float = 0.01  # nothing is committed if a larger fraction of records is rejected


@dataclass(frozen=True)
class DedupParams:
    """The leak rule of one test set."""

    ngram: int = 13  # words per shingle
    rule: str = "jaccard>=0.8"  # or "containment>=X"
    level: str = "document"  # delete the whole document, or "chunk": only chunks with shared shingles
    short_texts: str = "report"  # "remove": also delete exact matches of texts with fewer than `ngram` words
    text_template: str | None = None  # how fields of a record become a text, such as "{question} {choices}"
    max_document_frequency: float | None = (
        None  # containment rules: ignore shingles that a larger fraction of documents has
    )
    method: str = "exact"  # or "minhash": compares only documents that share a band, so it misses some leaks
    permutations: int = 128  # number of hash functions of a MinHash signature
    bands: str = "16x8"  # number of bands x rows of each band


@dataclass(frozen=True)
class NearDuplicatesParams:
    """Which documents are near-duplicates, and which one of each cluster is kept."""

    jaccard: float = 0.8  # smallest Jaccard similarity of two near-duplicates
    keep: str = "first"  # "first", "longest" or "newest" document of a cluster; the first of equal ones
    ngram: int = 13  # words per shingle
    permutations: int = 256  # number of hash functions of a MinHash signature
    bands: str = "32x8"  # number of bands x rows of each band


@dataclass(frozen=True)
class TagParams:
    """How documents are scored: exactly one of the first four fields is set."""

    wordlist: str | None = None  # file with one word or phrase per line
    regex: str | None = None  # regular expression in RE2 syntax
    hf_model: str | None = None  # sequence classifier: a folder or a Hugging Face name
    python: str | None = None  # "module:function" that turns a list of texts into a list of scores
    label: str | None = None  # label of the classifier; its probability is the score
    measure: str = "share"  # word lists and regular expressions: "share" of words that match, or "count" of matches


@dataclass(frozen=True)
class EmbedParams:
    """The encoder of a space; None takes the setting from the model's own files."""

    encoder: str  # "hashing:DIM", a folder or a Hugging Face name
    query_model: str | None = None  # separate model for queries, as in DPR: a folder or a Hugging Face name
    pooling: str | None = None  # "mean", "cls", "max" or "mean_sqrt_len"
    pooling_span: str | None = None  # "all", or "content": without [CLS] and [SEP]
    normalise: bool | None = None  # scale vectors to length 1
    metric: str | None = None  # "inner_product" or "squared_l2"
    query_prefix: str | None = None  # text added in front of every query
    passage_prefix: str | None = None  # text added in front of every chunk
    max_length: int | None = None  # longest input in encoder tokens; longer chunks are truncated and counted
    keep_vectors: bool | None = None  # False stores only the codes of the index; None stores vectors
    factory: str | None = None  # FAISS factory string for keep_vectors=False; None chooses by size


@dataclass(frozen=True)
class IndexParams:
    """How the vectors of a space are indexed."""

    factory: str = "auto"  # FAISS factory string; "auto" chooses by size
    train_sample: int | None = None  # vectors in the training sample; None takes 64 per inverted list
    seed: int = 0  # random seed of the sample and of k-means
    bytes_per_vector: int | None = None  # size limit of the search code of one vector
    search_memory_bytes: int = 8 << 30  # memory of the machine that searches the index; no limit of any command


@dataclass(frozen=True)
class NeighboursParams:
    """One neighbour table."""

    k: int = 2  # neighbours per row that a trainer reads
    spare_neighbours: int = 8  # more neighbours per row, which replace those that are deleted later
    exclude: tuple[str, ...] = ("document",)  # what may not be a neighbour: document, sequence, content, cluster
    recall: float = 0.95  # target recall@k of an approximate search
    exact: bool = False  # compare every row with every vector
    where: str | None = None  # SQL condition for documents that may be neighbours
    sample: float = 1.0  # fraction of these documents, chosen by a hash of the document key
    seed: int = 0  # random seed of that choice
    route_ranges: int = 0  # ranges of lists of which each row reads few, chosen by expected gain; 0: its nearest lists

    @property
    def is_restricted(self) -> bool:
        """Whether only some documents may be neighbours."""
        return self.where is not None or self.sample < 1


@dataclass(frozen=True)
class ValidateParams:
    """A short experiment that shows whether retrieval helps."""

    size: str = "tiny"  # size of the bundled RETRO model
    minutes: float = 5.0  # approximate training time of both models together; they train for the same number of steps
    steps: int | None = None  # optimiser steps of each model; replaces `minutes`
    batch_chunks: int = 16  # chunks per step
    max_train_chunks: int = 200_000  # approximate limit; training documents are sampled
    max_heldout_chunks: int = 2_000  # approximate limit; held-out documents are sampled
    seed: int = 0  # random seed of samples, weights, data order and shuffled neighbours


@dataclass(frozen=True)
class RetroTrainParams:
    """Training of the bundled RETRO model or of a RETROfit model on an `arrays` export."""

    size: str = "2m"  # size of the bundled model: tiny, 2m, 20m or 170m
    steps: int = 2_000  # optimiser steps
    minutes: float | None = None  # training time; replaces `steps`
    batch_chunks: int = 64  # chunks per step
    k: int | None = None  # neighbours per chunk; None reads all in the table
    without: bool = False  # train without neighbours (the baseline)
    learning_rate: float | None = None  # peak learning rate; None takes the default of the model size
    seed: int = 0  # random seed of weights, data order and dropout
    device: str = "auto"  # auto, cpu, cuda, cuda:1 or mps; CUDA computes in bfloat16
    save_every: int = 200  # steps between two checkpoints; a killed training continues from the last one


def from_mapping(kind: type[T], values: Mapping[str, object], *, where: str) -> T:
    """Build parameters from a TOML or JSON table. An unknown key fails, and the message suggests the nearest name.

    Raises:
        ConfigError: for an unknown or missing key, or a value of the wrong type.
    """
    import msgspec

    refuse_unknown_keys(values, [field.name for field in dataclasses.fields(kind)], where=where)
    # NumPy's float64 is a float, but msgspec only accepts the exact type.
    plain = {key: float(value) if isinstance(value, float) else value for key, value in values.items()}
    try:
        # msgspec leaves defaults to the class, so vars() would not have them. replace() sets every field.
        return dataclasses.replace(msgspec.convert(plain, kind, strict=True))
    except msgspec.ValidationError as error:
        raise ConfigError(_explain(str(error), plain), where=where) from error


def refuse_unknown_keys(values: Mapping[str, object], known: Sequence[str], *, where: str) -> None:
    """Raises ConfigError for the first key that is not known, with the nearest known name."""
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            remedy = f"Did you mean '{near[0]}'?" if near else f"Known keys: {', '.join(sorted(known))}."
            raise ConfigError(f"unknown key '{key}'", where=where, remedy=remedy)


_TYPE_NAMES = {
    "int": "an integer", "float": "a number", "str": "a string", "bool": "true or false", "array": "a list", "object": "a table",
}  # fmt: skip


def _explain(message: str, values: Mapping[str, object]) -> str:
    """The message of msgspec ("Expected `int | null`, got `str` - at `$.limit`") in our words."""
    if missing := re.search(r"missing required field `(\w+)`", message):
        return f"'{missing[1]}' is missing"
    wrong = re.match(r"Expected `([^`]+)`.* at `\$\.(\w+)(.*)`", message)
    if wrong is None:
        return message
    expected = " or ".join(_TYPE_NAMES.get(name, name) for name in wrong[1].split(" | ") if name != "null")
    subject = f"every element of '{wrong[2]}'" if wrong[3] else f"'{wrong[2]}'"
    return f"{subject} must be {expected}, not {values[wrong[2]]!r}"


def to_mapping(params: DataclassInstance) -> dict[str, PlainValue]:
    """The fields of a parameter object, with lists for tuples. Equal objects give equal mappings."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(params).items()}


def parse_toml(text: str, *, where: str) -> dict[str, object]:
    """Parse TOML text.

    Raises:
        ConfigError: for invalid TOML; the message has line and column.
    """
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"not valid TOML: {error}", where=where) from error


def dump_toml(values: Mapping[str, object]) -> str:
    """TOML text of a mapping of plain values, in the order given. None is left out."""
    import tomli_w

    return tomli_w.dumps(_without_none(values))


def _without_none(values: Mapping[str, object]) -> dict[str, object]:
    def plain(value: object) -> object:
        if isinstance(value, Mapping):
            return _without_none(value)
        return [plain(element) for element in value] if isinstance(value, list | tuple) else value

    return {key: plain(value) for key, value in values.items() if value is not None}


@dataclass(frozen=True)
class ExportParams:
    """Settings that only some export formats have. The Megatron settings have the names and the meaning of its arguments."""

    seq_length: int | None = None  # tokens of a sample (megatron); None takes the set's, or up to 2,048
    global_batch_size: int | None = None  # samples of a training step (megatron)
    eval_interval: int | None = None  # training steps between two validations (megatron)
    eval_iters: int | None = None  # steps of a validation, and of the test (megatron)
    data_cache_path: str | None = None  # folder where Megatron keeps the indices of its samples (megatron)
    contexts: str | None = None  # field of the neighbours: "ctxs" or "positive_ctxs" (dpr)
