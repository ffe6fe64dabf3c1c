"""The Arrow schema of every Parquet file of a database. README.md lists the columns with their meaning."""

from __future__ import annotations

import pyarrow as pa

ROLE_TEXT, ROLE_KEY, ROLE_VALUE = 0, 1, 2
"""Values of the `role` column: only `text` and `key` chunks are embedded."""

DOCUMENTS = pa.schema(
    [
        pa.field("doc_id", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("content_hash", pa.binary(16), nullable=False),
        pa.field("first_row", pa.int32(), nullable=False),
        pa.field("num_chunks", pa.int32(), nullable=False),
        pa.field("num_key_chunks", pa.int32(), nullable=False),
        pa.field("num_tokens", pa.int64(), nullable=False),
        pa.field("num_key_tokens", pa.int64(), nullable=False),
        pa.field("num_chars", pa.int64(), nullable=False),
        pa.field("added_at", pa.timestamp("us", tz="UTC"), nullable=False),
        pa.field("metadata", pa.string(), nullable=False),
    ]
)


def chunks_schema(token_dtype: str) -> pa.Schema:
    """The schema of a chunks file; `token_dtype` is `uint16` or `uint32`."""
    width = {"uint16": pa.uint16(), "uint32": pa.uint32()}[token_dtype]
    return pa.schema(
        [
            pa.field("document", pa.int32(), nullable=False),
            pa.field("position", pa.int32(), nullable=False),
            pa.field("role", pa.uint8(), nullable=False),
            pa.field("tokens", pa.large_list(pa.field("item", width, nullable=False)), nullable=False),
            pa.field("text", pa.large_string(), nullable=False),
        ]
    )


MANIFEST = pa.schema(
    [
        pa.field("op", pa.string(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),
        pa.field("name", pa.string(), nullable=False),
        pa.field("path", pa.string(), nullable=False),
        pa.field("first_chunk", pa.int64(), nullable=False),
        pa.field("num_chunks", pa.int64(), nullable=False),
        pa.field("num_documents", pa.int64(), nullable=False),
        pa.field("num_keys", pa.int64(), nullable=False),
        pa.field("num_tokens", pa.int64(), nullable=False),
        pa.field("rows", pa.binary(), nullable=True),
        pa.field("num_rows", pa.int64(), nullable=False),
        pa.field("size_bytes", pa.int64(), nullable=False),
        pa.field("sha256", pa.binary(), nullable=False),
        pa.field("xxh3", pa.binary(), nullable=False),
    ]
)

TOMBSTONES = pa.schema(
    [
        pa.field("first_chunk", pa.int64(), nullable=False),
        pa.field("num_chunks", pa.int64(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("active", pa.bool_(), nullable=False),
        pa.field("rows", pa.binary(), nullable=False),
    ]
)

ATTRIBUTES = pa.schema([pa.field("score", pa.float64(), nullable=False)])

INPUTS = pa.schema(
    [
        pa.field("path", pa.string(), nullable=False),
        pa.field("size_bytes", pa.int64(), nullable=False),
        pa.field("digest", pa.string(), nullable=False),
        pa.field("mapping", pa.string(), nullable=False),
    ]
)

REJECTS = pa.schema(
    [
        pa.field("path", pa.string(), nullable=False),
        pa.field("place", pa.string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("excerpt", pa.string(), nullable=False),
    ]
)

LEAK_REPORT = pa.schema(
    [
        pa.field("testset", pa.string(), nullable=False),
        pa.field("item", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("doc_id", pa.string(), nullable=False),
        pa.field("first_chunk", pa.int64(), nullable=False),
        pa.field("num_chunks", pa.int32(), nullable=False),
        pa.field("intersection", pa.int64(), nullable=False),
        pa.field("document_shingles", pa.int64(), nullable=False),
        pa.field("item_shingles", pa.int64(), nullable=False),
        pa.field("jaccard", pa.float64(), nullable=False),
        pa.field("containment", pa.float64(), nullable=False),
        pa.field("touched_chunks", pa.large_list(pa.int64()), nullable=False),
        pa.field("removed", pa.bool_(), nullable=False),
    ]
)

DUPLICATE_PAIRS = pa.schema(
    [
        pa.field("first", pa.int64(), nullable=False),
        pa.field("second", pa.int64(), nullable=False),
        pa.field("jaccard", pa.float64(), nullable=False),
    ]
)

DUPLICATE_CLUSTERS = pa.schema(
    [
        pa.field("document", pa.int64(), nullable=False),
        pa.field("cluster", pa.int64(), nullable=False),
        pa.field("keeper", pa.int64(), nullable=False),
        pa.field("jaccard", pa.float64(), nullable=False),
    ]
)

NAMING = pa.schema(
    [
        pa.field("neighbour", pa.int64(), nullable=False),
        pa.field("row", pa.int64(), nullable=False),
    ]
)

JOINED = pa.schema(
    [
        pa.field("side", pa.string(), nullable=False),
        pa.field("first_chunk", pa.int64(), nullable=False),
        pa.field("num_chunks", pa.int64(), nullable=False),
        pa.field("state", pa.string(), nullable=False),
        pa.field("num_rows", pa.int64(), nullable=False),
        pa.field("rows", pa.binary(), nullable=False),
    ]
)

EDITS = pa.schema(
    [
        pa.field("row", pa.int64(), nullable=False),
        pa.field("action", pa.string(), nullable=False),
        pa.field("chunk", pa.int64(), nullable=False),
        pa.field("distance", pa.float32(), nullable=False),
    ]
)


def neighbours_schema(k: int) -> pa.Schema:
    """The schema of a neighbour table; `k` counts the spare neighbours in."""
    return pa.schema(
        [
            pa.field("row", pa.int64(), nullable=False),
            pa.field("neighbours", pa.list_(pa.field("item", pa.int64(), nullable=False), k), nullable=False),
            pa.field("distances", pa.list_(pa.field("item", pa.float32(), nullable=False), k), nullable=False),
            pa.field("bound", pa.float32(), nullable=False),
        ]
    )
