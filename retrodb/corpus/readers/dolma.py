"""Dolma documents: JSON Lines of id, text, source, added, created and a metadata object."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import orjson

from retrodb.corpus.document import Document, Fields, Limits, Reject
from retrodb.corpus.readers.jsonl import read_jsonl
from retrodb.corpus.readers.open_file import OpenFile


def read_dolma(source: OpenFile, fields: Fields, limits: Limits) -> Iterator[Document | Reject]:
    """The documents of a Dolma file. The taggers' `attributes` are not kept as metadata, unless `Fields` names them."""
    wants_attributes = fields.metadata is not None
    for record in read_jsonl(source, fields, limits):
        if isinstance(record, Document) and b'"attributes"' in record.metadata and not wants_attributes:
            metadata = orjson.loads(record.metadata)
            metadata.pop("attributes", None)
            record = replace(record, metadata=orjson.dumps(metadata))
        yield record
