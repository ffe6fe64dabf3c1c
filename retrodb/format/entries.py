"""Entries of a snapshot: what is small and named, such as spaces, test sets and neighbour tables.

In a snapshot's JSON an entry stands under `kind/name`. Two keys are special: `default/space` holds a name as a plain
string, and `default/encoder` the parameters of the encoder that the default space will get.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import ClassVar, Literal, TypeAlias

from retrodb.config import DedupParams, EmbedParams, IndexParams, NearDuplicatesParams, NeighboursParams, TagParams
from retrodb.format.json_codec import JsonObject, JsonValue, from_plain, to_plain_object

Metric: TypeAlias = Literal["inner_product", "squared_l2"]


@dataclass(frozen=True)
class Entry:
    """What a snapshot keeps under a name; each kind is a class below."""

    kind: ClassVar[str]  # first part of its key


@dataclass(frozen=True)
class SpaceEntry(Entry):
    """A vector space."""

    kind: ClassVar[str] = "space"

    params: EmbedParams  # that it was made with
    identity: JsonObject  # of its encoder, see `encode/identity.py`
    fingerprint: str  # digest of the identity
    dimension: int
    metric: Metric


@dataclass(frozen=True)
class StoredPoint:
    """An operating point that was measured on held-out queries."""

    target: float  # the recall that was asked for
    nprobe: int  # lists to read
    recall: float  # that they give
    k: int  # neighbours that it was measured with


@dataclass(frozen=True)
class IndexEntry(Entry):
    """The codebook that the parts of a space share."""

    kind: ClassVar[str] = "index"

    codebook: str  # digest of its file
    factory: str  # FAISS factory string
    lists: int  # inverted lists
    note: str  # what training did otherwise than asked; "" for nothing
    params: IndexParams
    fingerprint: str | None = None  # of the space that it was trained on; None where vectors are not kept
    operating_points: tuple[StoredPoint, ...] = ()  # the last one stored stands last
    codes_recall: float | None = None  # recall@10 of the codes, where vectors are not kept
    assignment_recall: float | None = (
        None  # of the neighbours that an exact assignment to lists finds; None: it is exact
    )


@dataclass(frozen=True)
class TestsetEntry(Entry):
    """A test set that documents are compared with."""

    kind: ClassVar[str] = "testset"

    digest: str  # of its items and rule
    items: int  # number of them
    params: DedupParams
    version: int  # how many times it was registered with something new


@dataclass(frozen=True)
class QueriesEntry(Entry):
    """A query set, and where it comes from."""

    kind: ClassVar[str] = "queries"
    origin: str  # "ingest --holdout", "queries add", or the kind of a packing
    content: str | None = None  # digest of what it was made of
    seq_length: int | None = None  # tokens of a packed sequence
    tokenizer: str | None = None  # digest of the tokenizer whose tokens the sequences hold
    megatron: JsonObject | None = None  # a packing of this kind, as it describes itself
    sequences: JsonObject | None = None
    tokens: JsonObject | None = None


@dataclass(frozen=True)
class SourceEntry(Entry):
    """A source, and its last ingest."""

    kind: ClassVar[str] = "source"

    last_run: str
    mirror: str | None  # identity of the input that a mirror was made of; None after an ingest that added only
    options: JsonObject | None = None  # how its files were read, see `stages/ingest/remembered.py`; None: not known


@dataclass(frozen=True)
class TableDependencies:
    """What a row's neighbours depend on, in addition to the chunks: where it differs, no row can be reused."""

    space: str  # fingerprint
    queries: tuple[str, ...]  # documents files of a foreign query set: may grow, old rows stay valid
    clusters: tuple[str, ...]  # duplicates files, where clusters are excluded
    codebook: str | None  # None for an exact table

    def is_reusable(self, before: TableDependencies) -> bool:
        """Whether rows computed with the dependencies `before` are still valid."""
        unchanged = (self.space, self.clusters, self.codebook) == (before.space, before.clusters, before.codebook)
        return unchanged and set(before.queries) <= set(self.queries)


@dataclass(frozen=True)
class RoutingCost:
    """What a routing saves and costs a row of a table: means of a sample of rows, measured when the table was planned."""

    ranges: float  # of lists that have a list that it reads
    scanned: float  # vectors in these lists
    ranges_without: float  # the same where each row reads its nearest lists, as many as the same recall takes
    scanned_without: float


@dataclass(frozen=True)
class Routing:
    """How a row chooses few ranges of lists, see `ann/routing.py`."""

    num_ranges: int  # of consecutive lists, each with equally many lists, or one more
    # Nearest lists first: how many, and the true neighbours in each, in billionths of all.
    gains: tuple[tuple[int, int], ...]
    mass: int  # sum of gains, in billionths, from which on a row takes no further range
    cost: RoutingCost

    @property
    def num_lists(self) -> int:
        """The number of its nearest lists that a row looks at."""
        return sum(count for count, _ in self.gains)


@dataclass(frozen=True)
class TableEntry(Entry):
    """A neighbour table."""

    kind: ClassVar[str] = "table"

    queries: str  # query set
    space: str
    state: str  # of the live chunks that it was computed on
    dependencies: TableDependencies | None  # None: not known, so no row can be reused
    k: int
    spare_neighbours: int
    exclude: tuple[str, ...]
    recall: float
    exact: bool
    where: str | None
    sample: float
    seed: int
    nprobe: int  # lists that each row was compared with, with a routing at most; 0 for all vectors
    num_rows: int
    num_short: int  # rows with fewer than k neighbours
    recall_expected: float
    snapshot: int  # that it was computed or last repaired on
    recall_reached: float | None = None
    lost_chunks: int = 0  # that compaction took out of it since
    may_name_deleted: bool = (
        True  # a repair may have left the rows of deleted chunks, or rows that name them, in its files
    )
    route_ranges: int = 0  # of lists that rows are routed to; 0: no routing
    routing: Routing | None = None  # None: each row was compared with its nearest lists
    most_lists: int = 0  # that a row was compared with to find enough neighbours; 0: as many as it took, or all
    filled_lists: int = 0  # of a restricted table, that had chunks for it when its probes were chosen; 0: all are read
    num_capped: int = 0  # of the rows with fewer than k neighbours, those that this ended

    def is_of_same_origin(self, other: TableEntry) -> bool:
        """Whether both were computed from the same things; what was measured, and when, is not compared."""
        measured = {name: getattr(other, name) for name in _MEASURED}
        return replace(self, **measured) == other

    @property
    def params(self) -> NeighboursParams:
        """The parameters that it was computed with."""
        return NeighboursParams(**{field.name: getattr(self, field.name) for field in fields(NeighboursParams)})


_MEASURED = (
    "nprobe",
    "num_rows",
    "num_short",
    "recall_expected",
    "recall_reached",
    "snapshot",
    "lost_chunks",
    "may_name_deleted",
    "routing",
    "most_lists",
    "filled_lists",
    "num_capped",
)


@dataclass(frozen=True)
class AttributeEntry(Entry):
    """What gave the scores of an attribute."""

    kind: ClassVar[str] = "attribute"

    definition: JsonObject  # of the tagger: other content means other scores
    params: TagParams


@dataclass(frozen=True)
class PinEntry(Entry):
    """Keeps a snapshot from expiring."""

    kind: ClassVar[str] = "pin"

    snapshot: int


@dataclass(frozen=True)
class ExportEntry(Entry):
    """A registered export."""

    kind: ClassVar[str] = "export"

    path: str  # folder
    format: str
    snapshot: int  # that it shows
    table: str


@dataclass(frozen=True)
class DuplicatesEntry(Entry):
    """The last search for near-duplicates."""

    kind: ClassVar[str] = "duplicates"

    params: NearDuplicatesParams


@dataclass(frozen=True)
class DriftFigures:
    """How vectors were distributed over the lists when the codebook was trained; see `ann/drift.py`."""

    residual: float
    imbalance: float
    canary_recall: float | None
    vectors: int  # indexed


@dataclass(frozen=True)
class Canaries:
    """A few chunks whose exact neighbours are followed through every addition."""

    ids: tuple[int, ...] = ()
    nearest: tuple[tuple[tuple[int, int, float], ...], ...] = ()  # for each: chunk, list, distance


@dataclass(frozen=True)
class DriftEntry(Entry):
    """How vectors that were added since the training of the codebook are distributed over its lists."""

    kind: ClassVar[str] = "drift"

    residual: float
    imbalance: float
    canary_recall: float | None
    nprobe: int  # lists that the recall was measured with
    vectors: int  # indexed in all
    added: int  # since the training
    codebook: str  # digest
    training: DriftFigures
    canaries: Canaries


@dataclass(frozen=True)
class DefaultSpace(Entry):
    """The space that commands use when none is named: `default/space`."""

    kind: ClassVar[str] = "default"

    name: str


@dataclass(frozen=True)
class DefaultEncoder(Entry):
    """The encoder that the default space will get: `default/encoder`."""

    kind: ClassVar[str] = "default"

    params: EmbedParams


ENTRY_TYPES: Mapping[str, type[Entry]] = {
    kind.kind: kind
    for kind in (
        *(SpaceEntry, IndexEntry, TestsetEntry, QueriesEntry, SourceEntry, TableEntry, AttributeEntry, PinEntry),
        *(ExportEntry, DuplicatesEntry, DriftEntry),
    )
}
DEFAULT_SPACE_KEY, DEFAULT_ENCODER_KEY = "default/space", "default/encoder"
ENTRY_KINDS = (*ENTRY_TYPES, "default")
"""First parts of entry keys."""


def entry_key(kind: type[Entry], name: str) -> str:
    """The key of an entry, such as `space/default`."""
    return f"{kind.kind}/{name}"


def dump_entry(entry: Entry) -> JsonValue:
    """The JSON value of an entry as it stands in a snapshot."""
    if isinstance(entry, DefaultSpace):
        return entry.name
    if isinstance(entry, DefaultEncoder):
        return to_plain_object(entry.params)
    return to_plain_object(entry)


def parse_entry(key: str, value: object, *, where: str) -> Entry:
    """Read an entry.

    Raises:
        DamagedFileError: for an unknown kind, or other fields than the kind's.
    """
    location = f"{where}, entry '{key}'"
    if key == DEFAULT_SPACE_KEY:
        return DefaultSpace(from_plain(str, value, where=location))
    if key == DEFAULT_ENCODER_KEY:
        return DefaultEncoder(from_plain(EmbedParams, value, where=location))
    return from_plain(ENTRY_TYPES[key.partition("/")[0]], value, where=location)
