"""A data set that reads `retrodb export DB OUT --to arrays` with NumPy only. Start from it to write your own trainer.

A sample is a run of chunks: their tokens (l, m), and for each chunk K neighbours with their continuations (l, K, 2, m). The
pad token fills a missing neighbour or continuation, the end of a short chunk, and a deleted chunk. It is the first id outside
the vocabulary. In RETRO, chunk u may only see the neighbours of the chunks before it.
"""

import json
from pathlib import Path

import numpy as np


class Arrays:
    def __init__(self, folder, chunks_per_sample=32, k=2):
        folder, self.l, self.k = Path(folder), chunks_per_sample, k
        self.pad = json.loads((folder / "meta.json").read_text())["pad_token"]
        for path in folder.glob("*.npy"):  # memory-mapped: opening is fast, and worker processes share the memory
            setattr(self, path.stem, np.load(path, mmap_mode="r" if path.stat().st_size > 4096 else None))
        documents = self.query_documents  # a sample never crosses a document
        start = np.flatnonzero(np.append(True, documents[1:] != documents[:-1])[: len(documents)])
        runs = zip(start, np.diff(np.append(start, len(documents))), strict=True)
        self.samples = [(row + i, min(self.l, n - i)) for row, n in runs for i in range(0, n, self.l)]

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
        """The only place that reads tokens. Row -1 and tokens after the end of a chunk become padding, never another chunk."""
        is_token = (np.arange(tokens.shape[1]) < lengths[rows][..., None]) & (rows >= 0)[..., None]
        return np.where(is_token, tokens[rows].astype(np.int64), self.pad)
