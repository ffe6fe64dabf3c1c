"""A data set over `retrodb export DB OUT --to arrays`, with NumPy alone: the lines to start a trainer of one's own from.

A sample is a run of chunks: their tokens (l, m), and for each chunk K neighbours with their continuations (l, K, 2, m). Where
there is nothing (a missing neighbour or continuation, the end of a chunk, a chunk deleted since) stands the pad token, which is
the first id outside the vocabulary. RETRO's chunk u may see the neighbours of chunks before it only.
"""

import json
from pathlib import Path

import numpy as np


class Arrays:
    def __init__(self, folder, chunks_per_sample=32, k=2):
        folder, self.l, self.k = Path(folder), chunks_per_sample, k
        self.pad = json.loads((folder / "meta.json").read_text())["pad_token"]
        for path in folder.glob("*.npy"):  # memory-mapped: opening costs nothing, and workers share the pages
            setattr(self, path.stem, np.load(path, mmap_mode="r" if path.stat().st_size > 4096 else None))
        documents = self.query_documents  # a sample never crosses a document
        start = np.flatnonzero(np.append(True, documents[1:] != documents[:-1])[: len(documents)])
        runs = zip(start, np.diff(np.append(start, len(documents))), strict=True)
        self.samples = [(a + at, min(self.l, n - at)) for a, n in runs for at in range(0, n, self.l)]

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, number):
        first, count = self.samples[number]
        rows = np.where(np.arange(self.l) < count, first + np.arange(self.l), -1)
        near = np.where(rows[:, None] >= 0, self.neighbours[rows, : self.k], -1)  # (l, K)
        following = np.where(near >= 0, self.continuations[near], -1)
        values = self._gather(self.tokens, self.lengths, np.stack([near, following], axis=-1))
        return self._gather(self.query_tokens, self.query_lengths, rows), values

    def _gather(self, tokens, lengths, rows):
        """The only place that reads tokens: -1 and whatever is past a chunk's end is padding, never another chunk."""
        is_token = (np.arange(tokens.shape[1]) < lengths[rows][..., None]) & (rows >= 0)[..., None]
        return np.where(is_token, tokens[rows].astype(np.int64), self.pad)
