"""The specification and the code say the same."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

import retrodb.format
from retrodb.dedup.lsh import BAND_DTYPE
from retrodb.dedup.shingles import SHINGLE_VERSION
from retrodb.format import FORMAT_VERSION, MAX_SHARD_CHUNKS, ROW_GROUP_ROWS, schemas
from retrodb.format.blocks import BLOCK_BYTES
from retrodb.format.document_keys import HASH_DTYPE, ID_DTYPE
from retrodb.format.entries import ENTRY_KINDS
from retrodb.format.kinds import KINDS
from retrodb.format.records import SEGMENT_RECORDS
from retrodb.format.snapshot import Snapshot

TEXT = Path(retrodb.format.__file__).with_name("README.md").read_text()
SCHEMAS = {
    "DOCUMENTS": (schemas.DOCUMENTS,),
    "CHUNKS": (schemas.chunks_schema("uint16"), schemas.chunks_schema("uint32")),
    "MANIFEST": (schemas.MANIFEST,),
    "TOMBSTONES": (schemas.TOMBSTONES,),
    "ATTRIBUTES": (schemas.ATTRIBUTES,),
    "INPUTS": (schemas.INPUTS,),
    "REJECTS": (schemas.REJECTS,),
    "LEAK_REPORT": (schemas.LEAK_REPORT,),
    "DUPLICATE_PAIRS": (schemas.DUPLICATE_PAIRS,),
    "DUPLICATE_CLUSTERS": (schemas.DUPLICATE_CLUSTERS,),
    "NEIGHBOURS": (schemas.neighbours_schema(7),),
    "NAMING": (schemas.NAMING,),
    "JOINED": (schemas.JOINED,),
    "EDITS": (schemas.EDITS,),
}


def tables(heading: str) -> list[list[list[str]]]:
    """The tables below a heading, as rows of cells, without their header."""
    section = re.split(rf"^#+ {re.escape(heading)}$", TEXT, flags=re.MULTILINE)[1]
    section = re.split(r"^#+ ", section, flags=re.MULTILINE)[0]
    found = re.findall(r"(?:^\|.*\n)+", section, flags=re.MULTILINE)
    return [[[c.strip().strip("`") for c in row.strip("|").split("|")] for row in t.splitlines()[2:]] for t in found]


def test_file_kinds_are_those_of_the_code() -> None:
    [printed] = tables("File kinds")
    assert [row[:4] for row in printed] == [[k.name, k.pattern, k.covers, k.derived_from] for k in KINDS.values()]
    assert all(len(row) == 5 and row[4] for row in printed)


def test_derived_kinds_name_other_kinds() -> None:
    assert {k.derived_from for k in KINDS.values()} <= {*KINDS, "-"}
    assert {k.covers for k in KINDS.values()} == {"chunks", "queries", "-"}


@pytest.mark.parametrize("name", SCHEMAS)
def test_columns_are_those_of_the_code(name: str) -> None:
    [printed] = tables(name)
    for number, schema in enumerate(SCHEMAS[name]):
        types = [type_name(field.type) for field in schema]
        assert [row[0] for row in printed] == schema.names
        assert [row[1].split(" or ")[number if " or " in row[1] else 0] for row in printed] == types
    assert all(row[2] for row in printed)


def test_every_schema_of_the_code_is_in_the_specification() -> None:
    constants = {name for name, value in vars(schemas).items() if isinstance(value, pa.Schema)}
    functions = {n.removesuffix("_schema").upper() for n in vars(schemas) if n.endswith("_schema")}
    assert constants | functions == set(SCHEMAS)


def test_only_the_bitmap_of_a_manifest_may_be_null() -> None:
    nullable = [f"{name}.{field.name}" for name, (schema, *_) in SCHEMAS.items() for field in schema if field.nullable]
    assert nullable == ["MANIFEST.rows"]


def test_entries_of_ids_and_hashes_are_those_of_the_code() -> None:
    for printed, dtype in zip(tables("Ids and hashes"), (ID_DTYPE, HASH_DTYPE), strict=True):
        assert np.dtype([(name, kind) for name, kind, _ in printed]) == dtype


def test_entries_of_bands_are_those_of_the_code() -> None:
    [printed] = tables("MinHash bands")
    assert np.dtype([(name, kind) for name, kind, _ in printed]) == BAND_DTYPE


def test_snapshot_fields_and_entry_kinds_are_those_of_the_code() -> None:
    snapshot, entries = tables("Snapshots")
    assert [row[0] for row in snapshot] == [field.name for field in fields(Snapshot)]
    assert [row[0] for row in entries] == list(ENTRY_KINDS)


def test_numbers_are_those_of_the_code() -> None:
    [rows] = tables("Numbers and limits")
    numbers = {name: said.rpartition(" ")[2].replace(",", "") for name, said in rows}
    assert numbers["chunks of a shard"] == str(MAX_SHARD_CHUNKS)
    assert numbers["rows of a row group"] == str(ROW_GROUP_ROWS)
    assert numbers["bytes of a block"] == str(BLOCK_BYTES)
    assert numbers["records of a manifest segment"] == str(SEGMENT_RECORDS)


def test_versions_are_those_of_the_code() -> None:
    assert TEXT.startswith(f"# The disk format, version {FORMAT_VERSION}\n")
    assert f"`SHINGLE_VERSION` {SHINGLE_VERSION}" in TEXT


def type_name(kind: pa.DataType) -> str:
    """As Arrow prints it, lists without the name and nullability of their items."""
    return re.sub(r"item: (\w+)( not null)?", r"\1", str(kind)).replace("[7]", "[k]")
