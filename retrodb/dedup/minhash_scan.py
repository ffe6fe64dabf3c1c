"""The leak scan by MinHash, as in the paper: only pairs with a common band are compared, but these are compared exactly.

Shapes: `M` documents, `E` candidate pairs. Such a scan misses a fraction of the true pairs, which `Banding.expected_miss`
predicts. `exact_scan.scan_texts` misses none and is faster. This scan exists to repeat published results.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from retrodb.dedup.exact_scan import ScanResult, ShortHits, scan_texts
from retrodb.dedup.lsh import Banding, common_buckets, sort_bands
from retrodb.dedup.minhash import NO_SHINGLES, signatures
from retrodb.dedup.shingle_table import ShingleTable
from retrodb.format.arrays import BoolArray, Int64Array


class MinHashScan:
    """Compares documents with a test set like `scan_texts`, but only candidates, and texts too short for a shingle."""

    def __init__(self, table: ShingleTable, num_permutations: int, banding: Banding) -> None:
        self.table, self.num_permutations, self.banding = table, num_permutations, banding
        sketch = signatures(table.texts(), num_permutations, ngram=table.ngram)
        self._item_bands = sort_bands(sketch, np.arange(table.num_items), banding)

    def __call__(self, texts: pa.Array) -> ScanResult:
        """The hits among the candidates of documents (M,)."""
        sketch = signatures(texts, self.num_permutations, ngram=self.table.ngram)
        pairs = common_buckets(sort_bands(sketch, np.arange(len(texts)), self.banding), self._item_bands)
        short = np.flatnonzero((sketch == NO_SHINGLES).all(axis=1))
        chosen = np.union1d(pairs[:, 0], short)
        result = scan_texts(texts.take(pa.array(chosen)), self.table)
        document = chosen[result.hits.document]
        hits = result.hits.take(np.flatnonzero(_are_pairs(pairs, document, result.hits.item)))
        num_words = np.zeros(len(texts), np.int64)
        num_words[chosen] = result.num_words
        short_hits = ShortHits(chosen[result.short_hits.document], result.short_hits.item)
        return ScanResult(hits.renumbered(chosen), short_hits, num_words)


def _are_pairs(pairs: Int64Array, first: Int64Array, second: Int64Array) -> BoolArray:
    """Whether each (first, second) is one of the pairs (E, 2)."""
    known = set(map(tuple, pairs.tolist()))
    return np.array([pair in known for pair in zip(first.tolist(), second.tolist(), strict=True)], np.bool_)
