"""A transformer as an `Encoder`: tokenizer, model and pipeline put together.

Shapes: N passages, Q queries, B rows of a batch, L tokens each, D dimensions.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from retrodb.encode.batching import plan_batches
from retrodb.encode.device import Compute
from retrodb.encode.identity import EncodedBatch, EncoderIdentity, Provenance, Texts
from retrodb.encode.pipeline import InFlight, Pipeline, pool
from retrodb.encode.wordpiece import TokenIds, TokenizerSpec, tokenize
from retrodb.errors import InputError, RetroDBError


class HiddenStates(Protocol):
    """A model up to its last hidden state; `bert.LeanBert` or `fallback.TransformersModel`."""

    @property
    def num_embeddings(self) -> int: ...

    @property
    def max_length(self) -> int: ...

    def __call__(self, ids_BL: Tensor) -> Tensor: ...

    def num_flops(self, length: int) -> int: ...


@dataclass(frozen=True)
class _Started:
    """A window under way."""

    tokens: TokenIds
    work: InFlight
    batch_tokens: int


class TransformerEncoder:
    """An encoder whose passages go through one model and whose queries go through it or another."""

    def __init__(
        self,
        identity: EncoderIdentity,
        provenance: Provenance,
        model: HiddenStates,
        tokenizer: TokenizerSpec,
        special_tokens: tuple[int, int],
        compute: Compute,
        *,
        query_encoder: TransformerEncoder | None = None,
        tokenize_workers: int = 0,
    ) -> None:
        """`special_tokens` says how many stand before and after a text, `tokenize_workers` how many processes tokenize ahead
        of the device; 0 is a thread, which is enough for a CPU."""
        self.identity, self._provenance = identity, provenance
        self.model, self.tokenizer, self.special_tokens = model, tokenizer, special_tokens
        self.query_encoder, self.tokenize_workers = query_encoder, tokenize_workers
        self.batch_tokens = compute.batch_tokens
        self.pipeline = Pipeline(self._embed, identity.dimension, compute)

    @property
    def provenance(self) -> Provenance:
        """As of now: the token budget is halved when the memory does not suffice."""
        return replace(self._provenance, batch_tokens=self.batch_tokens)

    def num_flops(self, num_tokens_N: npt.NDArray[np.int32]) -> float:
        """Floating-point operations of the model for passages of these lengths."""
        lengths, counts = np.unique(num_tokens_N, return_counts=True)
        return float(sum(self.model.num_flops(int(n)) * int(c) for n, c in zip(lengths, counts, strict=True)))

    def encode_passages(self, texts: Texts) -> EncodedBatch:
        """Vectors of one window of texts.

        Raises:
            InputError: a vector is not finite in float16; the error names the row.
        """
        return self._encode_one(texts, self.identity.passage_prefix)

    def encode_windows(self, text_windows: Iterable[Texts]) -> Iterator[EncodedBatch]:
        """One result for each window, in order; the next windows are tokenized and copied while one is computed."""
        started: deque[_Started] = deque()
        with self._tokenizers() as executor:
            for tokens in self._tokenize_ahead(executor, text_windows):
                started.append(self._start(tokens))
                # A CPU's window is complete once it is started; a GPU's is fetched when the next one is at work.
                while len(started) > 1 or (started and started[0].work.done is None):
                    yield self._finish(started.popleft())
            yield from map(self._finish, started)

    def encode_queries(self, texts: Texts) -> npt.NDArray[np.float32]:
        """Vectors (Q, D) of texts as queries, rounded to float16 as the passages are."""
        encoder = self.query_encoder or self
        return encoder._encode_one(texts, self.identity.query_prefix).vectors_ND.astype(np.float32)

    def _encode_one(self, texts: Texts, prefix: str) -> EncodedBatch:
        return self._finish(self._start(tokenize(self.tokenizer, _with_prefix(texts, prefix))))

    def _tokenizers(self) -> Executor:
        if self.tokenize_workers == 0:
            return ThreadPoolExecutor(1)
        return ProcessPoolExecutor(self.tokenize_workers, mp_context=get_context("spawn"))

    def _tokenize_ahead(self, executor: Executor, text_windows: Iterable[Texts]) -> Iterator[TokenIds]:
        """Keeps two windows for each worker tokenized or in work."""
        queue: deque[Future[TokenIds]] = deque()
        for texts in text_windows:
            passages = _with_prefix(texts, self.identity.passage_prefix)
            queue.append(executor.submit(tokenize, self.tokenizer, passages))
            if len(queue) > 2 * max(1, self.tokenize_workers):
                yield queue.popleft().result()
        yield from (future.result() for future in queue)

    def _start(self, tokens: TokenIds) -> _Started:
        """Starts a window; if the memory does not suffice, the whole window is planned again with half the budget.

        That happens once, and the budget stays halved: what is in a batch then still follows from lengths and budget alone.
        """
        try:
            return self._start_planned(tokens)
        except torch.OutOfMemoryError as error:
            if self.batch_tokens < self.pipeline.compute.batch_tokens:
                raise RetroDBError(
                    f"out of memory on {self.pipeline.compute.device} with {self.batch_tokens} tokens a batch",
                    remedy="Give a smaller --batch-tokens.",
                ) from error
        self.batch_tokens = max(1, self.batch_tokens // 2)
        if self.pipeline.compute.is_cuda:
            torch.cuda.empty_cache()
        return self._start(tokens)

    def _start_planned(self, tokens: TokenIds) -> _Started:
        plan = plan_batches(tokens.lengths_N, batch_tokens=self.batch_tokens)
        return _Started(tokens, self.pipeline.start(tokens.ids, tokens.offsets, plan), self.batch_tokens)

    def _finish(self, window: _Started) -> EncodedBatch:
        vectors_ND = self.pipeline.finish(window.work)
        is_finite_N = np.isfinite(vectors_ND).all(1)
        if not is_finite_N.all():
            raise InputError(
                f"the encoder gave NaN or infinite values for {np.count_nonzero(~is_finite_N)} passages",
                where=f"row {int(np.argmin(is_finite_N))} of the window",
                remedy="Are the weights whole, and does --dtype float32 help?",
            )
        tokens = window.tokens
        return EncodedBatch(vectors_ND, tokens.lengths_N, tokens.num_truncated, window.batch_tokens)

    def _embed(self, ids_BL: Tensor) -> Tensor:
        """Pooled and, where the model does so, normalised vectors (B, D) float32."""
        leading, trailing = self.special_tokens if self.identity.pooling_span == "content" else (0, 0)
        vectors_BD = pool(self.model(ids_BL), self.identity.pooling, leading=leading, trailing=trailing)
        return F.normalize(vectors_BD, dim=1) if self.identity.normalise else vectors_BD


def _with_prefix(texts: Texts, prefix: str) -> list[str]:
    strings = list(texts) if isinstance(texts, Sequence) else texts.to_pylist()
    return [prefix + text for text in strings] if prefix else strings
