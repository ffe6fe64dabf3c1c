"""Parameters of the stages, as frozen dataclasses, and their way in and out of TOML.

A parameter object says what a command was asked to do, never where the machine keeps things: it is hashed into the
identity of the command's tasks, so two runs with equal parameters are the same work. Worker counts, devices and
progress bars are therefore not here.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import tomllib
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from retrodb.errors import ConfigError

T = TypeVar("T")

# fmt: off
EXPORT_FORMATS = (
    "parquet", "huggingface", "arrays", "megatron", "lucidrains", "norlund", "nemo", "dpr", "atlas",
)
# fmt: on
"""The formats of trainers; `export/export.py` has their writers."""


@dataclass(frozen=True)
class InitParams:
    """What can never change in a database once it exists."""

    tokenizer: str  # file, folder or hub name of the language model's tokenizer
    chunk_tokens: int = 64  # tokens of one chunk (m in the paper)
    min_key_tokens: int = 8  # a shorter tail of a document serves as continuation only
    encoder: str = "sentence-transformers/all-MiniLM-L6-v2"  # encoder of the default space
    preset: str | None = None  # "retro" chooses the paper's encoder and metric


@dataclass(frozen=True)
class IngestParams:
    """How outside records become documents of one source."""

    source: str  # documents are identified within their source
    format: str = "auto"  # reader, or "auto" to look at the content
    id_field: str | None = None  # record field with the document id; None tries the usual names
    text_field: str | None = None  # record field with the text; None tries the usual names
    key_field: str | None = None  # key-value databases: what is embedded
    value_field: str | None = None  # key-value databases: what follows the key
    metadata_fields: tuple[str, ...] | None = None  # fields to keep as metadata; None keeps all
    drop_metadata: bool = False  # keep no metadata at all
    marker: str | None = None  # separates the documents inside a plain-text file; None: one file is one document
    front_matter: str = "text"  # headers of text and Markdown files: part of the text, or "metadata"
    mirror: bool = False  # remove documents of the source that the input no longer has
    limit: int | None = None  # take the first N records and mark no input as done
    holdout: float = 0.0  # share of documents kept out, chosen by hash of the id
    max_document_chars: int = 100_000_000  # longer documents are treated as `oversize` says
    oversize: str = "reject"  # "reject" or "split"
    max_record_bytes: int = 1 << 28  # decompressed bytes of one record
    max_reject_rate: float = 0.01  # above it nothing is committed


@dataclass(frozen=True)
class DedupParams:
    """The leak rule of one test set."""

    ngram: int = 13  # words of a shingle
    rule: str = "jaccard>=0.8"  # or "containment>=X"
    level: str = "document"  # or "chunk": remove what the shared n-grams touch
    short_texts: str = "report"  # "remove": also remove exact matches of texts under `ngram` words
    text_template: str | None = None  # fields of a test record, such as "{question} {choices}"
    max_document_frequency: float | None = None  # containment rules: ignore shingles in more of the corpus than this
    method: str = "exact"  # or "minhash": only candidates of its bands are compared, some leaks are missed
    permutations: int = 128  # of a MinHash signature
    bands: str = "16x8"  # how it is cut: bands x rows


@dataclass(frozen=True)
class NearDuplicatesParams:
    """Which documents of the corpus are the same but for details, and which one of them stays."""

    jaccard: float = 0.8  # from this similarity of shingle sets on
    keep: str = "first"  # "first", "longest" or "newest" of a cluster; of equals the first
    ngram: int = 13  # words of a shingle
    permutations: int = 256  # of a MinHash signature
    bands: str = "32x8"  # how it is cut: bands x rows


@dataclass(frozen=True)
class TagParams:
    """What gives documents their scores: exactly one of the first four."""

    wordlist: str | None = None  # file of words and phrases, one a line
    regex: str | None = None  # expression of RE2
    hf_model: str | None = None  # folder or hub name of a sequence classifier
    python: str | None = None  # "module:function", from a list of texts to a list of numbers
    label: str | None = None  # of the classifier, whose probability is the score
    measure: str = "share"  # of a word list or expression: "share" of the words that match, or "count" of matches


@dataclass(frozen=True)
class EmbedParams:
    """The encoder of a space; None reads the convention from the model's own files."""

    encoder: str  # "hashing:<dim>", a folder, or a hub name
    query_model: str | None = None  # another model for the queries, as in DPR: a folder or hub name
    pooling: str | None = None  # "mean", "cls", "max" or "mean_sqrt_len"
    pooling_span: str | None = None  # "all", or "content": without [CLS] and [SEP]
    normalise: bool | None = None  # unit length
    metric: str | None = None  # "inner_product" or "squared_l2"
    query_prefix: str | None = None  # put before a query's text
    passage_prefix: str | None = None  # put before a chunk's text
    max_length: int | None = None  # encoder tokens, longer chunks are cut and counted
    keep_vectors: bool | None = None  # False: only the index codes are stored; None keeps them
    factory: str | None = None  # of the index that takes the codes, where vectors are not kept; None goes by size


@dataclass(frozen=True)
class IndexParams:
    """How the vectors of a space are organised for search."""

    factory: str = "auto"  # FAISS factory string, or by size
    train_sample: int | None = None  # vectors of the training sample; None is 64 per list
    seed: int = 0  # of the sample and of k-means
    bytes_per_vector: int | None = None  # upper limit for the search code
    memory_bytes: int = 8 << 30  # what a searching machine may use


@dataclass(frozen=True)
class NeighboursParams:
    """One neighbour table."""

    k: int = 2  # neighbours a trainer reads
    spare_neighbours: int = 8  # kept beyond k, so that deletions need no new search
    exclude: tuple[str, ...] = ("document",)  # exclusion kinds that act inside the search
    recall: float = 0.95  # recall@k to aim at where the search is approximate
    exact: bool = False  # compare with every vector
    where: str | None = None  # SQL condition on the documents that may be neighbours
    sample: float = 1.0  # share of these, chosen by hash of the document's key
    seed: int = 0  # of that hash


@dataclass(frozen=True)
class ValidateParams:
    """The bounded experiment that tells whether retrieval helps."""

    size: str = "tiny"  # of the bundled RETRO model
    minutes: float = 5.0  # to train both models, about; they get equal steps
    steps: int | None = None  # instead of `minutes`: optimiser steps of each of the two models
    batch_chunks: int = 16  # chunks a step
    max_train_chunks: int = 200_000  # training documents are sampled down to about so many chunks
    max_heldout_chunks: int = 2_000  # and held-out documents too
    seed: int = 0  # of samples, weights, order and shuffles


@dataclass(frozen=True)
class RetroTrainParams:
    """A training of the bundled model, or of a RETROfit, on an `arrays` export."""

    size: str = "2m"  # of a model of our own: tiny, 2m, 20m, 170m
    steps: int = 2_000  # optimiser steps
    minutes: float | None = None  # instead of `steps`: how long
    batch_chunks: int = 64  # chunks a step
    k: int | None = None  # neighbours read of each chunk; None reads all that the table has
    without: bool = False  # train without any neighbour: the baseline
    learning_rate: float | None = None  # at the peak; None takes the size's own
    seed: int = 0  # of weights, order and dropout
    device: str = "auto"  # auto, cpu, cuda, cuda:1 or mps; bfloat16 on CUDA
    save_every: int = 200  # steps between two states that a killed training continues from


def from_mapping(kind: type[T], values: Mapping[str, Any], *, where: str) -> T:
    """Build parameters from a TOML table; an unknown key fails and suggests the nearest name.

    Raises:
        ConfigError: for an unknown key or a value of the wrong type.
    """
    hints = typing.get_type_hints(kind)
    for key, value in values.items():
        if key not in hints:
            near = difflib.get_close_matches(key, hints, n=1)
            remedy = f"Did you mean '{near[0]}'?" if near else f"Known keys: {', '.join(sorted(hints))}."
            raise ConfigError(f"unknown key '{key}'", where=where, remedy=remedy)
        _check_type(key, list(value) if isinstance(value, tuple) else value, hints[key], where)
    converted = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    try:
        return kind(**converted)
    except TypeError as error:
        raise ConfigError(str(error), where=where) from error


def _check_type(key: str, value: Any, hint: Any, where: str) -> None:
    allowed = [typing.get_origin(h) or h for h in (typing.get_args(hint) or (hint,))]
    if typing.get_origin(hint) in (tuple, Mapping):
        allowed = [typing.get_origin(hint)]
    kinds: dict[Any, type] = {tuple: list, Mapping: dict}
    types = tuple(kinds.get(a, a) for a in allowed if isinstance(a, type)) or (object,)
    if isinstance(value, types) and not (isinstance(value, bool) and bool not in types):
        return
    if isinstance(value, int) and float in types and not isinstance(value, bool):
        return
    names = " or ".join(t.__name__ for t in types if t is not type(None))
    raise ConfigError(f"'{key}' must be {names}, not {value!r}", where=where)


def to_mapping(params: Any) -> dict[str, Any]:
    """The fields of a parameter object, tuples as lists; equal objects give equal mappings."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(params).items()}


def parse_toml(text: str, *, where: str) -> dict[str, Any]:
    """Parse TOML text.

    Raises:
        ConfigError: with file, line and column when it is no TOML.
    """
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"not valid TOML: {error}", where=where) from error


def dump_toml(values: Mapping[str, Any]) -> str:
    """TOML text of a mapping of plain values, mappings and lists of mappings, in the order given; None is left out."""
    lines: list[str] = []
    _dump_table(values, "", lines)
    return "\n".join(lines).strip() + "\n"


def _dump_table(values: Mapping[str, Any], prefix: str, lines: list[str]) -> None:
    for key, value in values.items():
        if value is not None and not _tables(value):
            lines.append(f"{_toml_key(key)} = {_toml_value(value)}")
    for key, value in values.items():
        for table in _tables(value):
            name = f"{prefix}{_toml_key(key)}"
            if not isinstance(value, Mapping):
                lines.extend(["", f"[[{name}]]"])
            elif not table or not all(map(_tables, table.values())):  # a table of tables needs no header of its own
                lines.extend(["", f"[{name}]"])
            _dump_table(table, f"{name}.", lines)


def _tables(value: Any) -> Sequence[Mapping[str, Any]]:
    """The tables that a value is written as: itself, its elements, or none."""
    if isinstance(value, Mapping):
        return [value]
    return value if isinstance(value, list | tuple) and value and isinstance(value[0], Mapping) else []


def _toml_key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _toml_value(key)


def _toml_value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml_value(v) for v in value) + "]"
    text = "".join(f"\\u{ord(c):04x}" if ord(c) < 32 or ord(c) == 127 else c for c in _escape(str(value)))
    return f'"{text}"'


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')
