"""Documents by their names: an id alone, in any source, or source and id with a slash between them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from retrodb.format.arrays import map_array
from retrodb.format.document_keys import key_of
from retrodb.view.purged import KEY_DTYPE, is_among
from retrodb.view.view import View

if TYPE_CHECKING:
    from retrodb.format.arrays import Int64Array


def documents_named(view: View, names: Sequence[str]) -> tuple[Int64Array, list[str]]:
    """The first chunk ids (Q,) of all versions of the documents of these names, deleted or not, ascending; and unknown names.

    A name that can be read as source and id, and is one, is not looked for as an id.
    """
    chosen = first_chunks_of(view, names)
    ids = {first for firsts in chosen.values() for first in firsts}
    return np.array(sorted(ids), dtype=np.int64), [name for name, firsts in chosen.items() if not firsts]


def first_chunks_of(view: View, names: Sequence[str]) -> dict[str, list[int]]:
    """For every name the first chunk ids of all versions of its documents; none for an unknown one."""
    sources = sorted(set(view.shards.source))
    bare = {key_of(source, name): name for source in sources for name in names}
    full = {
        key_of(name[:slash], name[slash + 1 :]): name
        for name in names
        for slash, sign in enumerate(name)
        if sign == "/" and name[:slash] in sources
    }
    by_id, by_source_and_id = _lookup(view, bare), _lookup(view, full)
    return {name: by_source_and_id.get(name) or by_id.get(name) or [] for name in dict.fromkeys(names)}


def _lookup(view: View, wanted: dict[int, str]) -> dict[str, list[int]]:
    """Name -> first chunk ids of the documents with a key that stands for it."""
    keys = np.array([divmod(key, 1 << 64) for key in sorted(wanted)], dtype=np.uint64).reshape(-1, 2)
    first_chunks: dict[str, list[int]] = defaultdict(list)
    for record in view.coverage("ids").records:
        entries = map_array(view.files.open(record))
        hits = entries[is_among(entries, keys.view(KEY_DTYPE).ravel())]
        for hit, first in zip(hits, (hits["row"] + record.first_chunk).tolist(), strict=True):
            if (
                view.chunks.document_ids(np.array([first]))[0] == first
            ):  # compaction keeps ids of documents that are gone
                first_chunks[wanted[int(hit["key_hi"]) << 64 | int(hit["key_lo"])]].append(first)
    return first_chunks
