"""Where the inverted lists of a FAISS index are in its file, so that a search verifies the lists that it probes.

FAISS writes plain inverted lists last: `ilar`, the number of lists, the bytes of a code, then `full` and the sizes of all lists,
or `sprs` and (list, size) pairs, and then for each list that is not empty its codes followed by its ids. It maps such a file
instead of reading it. Files in any other form it reads whole.

Legend: L lists.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np

from retrodb.format.arrays import Int64Array
from retrodb.store.verified_bytes import MappedBytes

_MARK = b"ilar"
_HEAD = struct.Struct("<4sQQ4sQ")  # mark, lists, bytes of a code, "full" or "sprs", numbers that follow
_ID_BYTES = 8


@dataclass(frozen=True)
class ListRanges:
    """The bytes of each list in the file."""

    starts_L: Int64Array
    ends_L: Int64Array


def find_lists(file: MappedBytes, num_lists: int, num_rows: int) -> ListRanges | None:
    """The lists of an index that FAISS maps, after everything in the file but the lists was verified; None for all other files.

    Raises:
        DamagedFileError: any byte of a file without mapped lists is damaged, or a byte outside of the lists of another one.
    """
    mark = _MARK + struct.pack("<Q", num_lists)
    position = file.find(mark)  # nothing is verified yet: the place is a guess until `_ranges` has verified it
    while position >= 0:
        found = _ranges(file, position, num_lists, num_rows)
        if found is not None:
            return found
        position = file.find(mark, position + 1)
    file.whole()
    return None


def _ranges(file: MappedBytes, position: int, num_lists: int, num_rows: int) -> ListRanges | None:
    """The lists that begin at a mark, if they fill the rest of the file but for few bytes."""
    size = len(file.data)
    if position + _HEAD.size > size:
        return None
    _, _, code_bytes, form, count = _HEAD.unpack(file.data[position : position + _HEAD.size])
    start = position + _HEAD.size + 8 * count
    end = start + num_rows * (code_bytes + _ID_BYTES)
    if form not in (b"full", b"sprs") or start > size or end > size:
        return None
    numbers = np.frombuffer(file.data, "<i8", count, position + _HEAD.size)
    sizes_L = np.zeros(num_lists, np.int64)
    if form == b"full" and count == num_lists:
        sizes_L[:] = numbers
    elif form == b"sprs" and not count % 2 and (numbers[::2] < num_lists).all() and (numbers[::2] >= 0).all():
        sizes_L[numbers[::2]] = numbers[1::2]
    if sizes_L.sum() != num_rows or sizes_L.min(initial=0) < 0:
        return None
    file.declare(np.array([0, end]), np.array([start, size]))  # now all that was looked at is verified
    ends_L = start + np.cumsum(sizes_L) * (code_bytes + _ID_BYTES)
    return ListRanges(ends_L - sizes_L * (code_bytes + _ID_BYTES), ends_L)
