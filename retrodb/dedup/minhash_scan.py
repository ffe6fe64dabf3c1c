"""The leak scan by MinHash, as the paper did it: only pairs that share a band are compared, but these exactly.

Shapes: `M` documents, `E` candidate pairs. Such a scan misses a share of the true pairs that its bands foretell
(`Bands.expected_miss`); `leakscan.scan` misses none and is faster. It is here to repeat what others did.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from retrodb.dedup.exact_scan import ScanResult, ShortHits, scan
from retrodb.dedup.lsh import Bands, common_buckets, make_run
from retrodb.dedup.minhash import EMPTY, signatures
from retrodb.dedup.shingle_table import ShingleTable
from retrodb.format.arrays import Int64Array


class MinHashScan:
    """Holds documents against a test set like `scan`, but sees only candidates and texts too short for a shingle."""

    def __init__(self, table: ShingleTable, num_permutations: int, bands: Bands) -> None:
        self.table, self.num_permutations, self.bands = table, num_permutations, bands
        sketch = signatures(table.texts(), num_permutations, ngram=table.ngram)
        self._items = make_run(sketch, np.arange(table.num_items), bands)

    def __call__(self, texts: pa.Array) -> ScanResult:
        """The hits among the candidates of documents (M,)."""
        sketch = signatures(texts, self.num_permutations, ngram=self.table.ngram)
        pairs = common_buckets(make_run(sketch, np.arange(len(texts)), self.bands), self._items)
        short = np.flatnonzero((sketch == EMPTY).all(axis=1))
        chosen = np.union1d(pairs[:, 0], short)
        found = scan(texts.take(pa.array(chosen)), self.table)
        document = chosen[found.hits.document]
        hits = found.hits.take(np.flatnonzero(_contains(pairs, document, found.hits.item)))
        num_words = np.zeros(len(texts), np.int64)
        num_words[chosen] = found.num_words
        short_hits = ShortHits(chosen[found.short_hits.document], found.short_hits.item)
        return ScanResult(hits.renumbered(chosen), short_hits, num_words)


def _contains(pairs: Int64Array, first: Int64Array, second: Int64Array) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Whether each (first, second) is one of the pairs (E, 2)."""
    known = set(map(tuple, pairs.tolist()))
    return np.array([pair in known for pair in zip(first.tolist(), second.tolist(), strict=True)], np.bool_)
