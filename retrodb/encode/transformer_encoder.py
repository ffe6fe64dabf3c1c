"""A transformer as an `Encoder`: tokenizer, model and pipeline.

Shapes: N passages, Q queries, B rows of a batch, L tokens each, D dimensions.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from retrodb.encode.batching import plan_batches
from retrodb.encode.chunk_tokenizer import TokenIds, TokenizerSpec, tokenize
from retrodb.encode.device import Compute, measure_matrix_rate
from retrodb.encode.encoder import EncodedBatch, NotFiniteError, OutOfDeviceMemory, Texts
from retrodb.encode.identity import EncoderIdentity, Provenance
from retrodb.encode.pipeline import InFlight, Pipeline, pool
from retrodb.errors import InputError, RetroDBError
from retrodb.format.arrays import Float32Array, Int32Array


class HiddenStates(Protocol):
    """A model up to its last hidden state: `bert.LeanBert` or `transformers_model.TransformersModel`."""

    @property
    def num_embeddings(self) -> int: ...

    @property
    def max_length(self) -> int | None: ...  # None: any length

    def __call__(self, ids_BL: Tensor) -> Tensor: ...

    def num_flops(self, length: int) -> int: ...


@dataclass(frozen=True)
class _Started:
    """A window that was started."""

    tokens: TokenIds
    work: InFlight


class TransformerEncoder:
    """An encoder with one model for passages, and the same or another model for queries."""

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
        """Args:
        special_tokens: how many of them are before and after a text.
        tokenize_workers: processes that tokenize ahead of the device; 0 is a thread, which is enough for a CPU.
        """
        self.identity, self.provenance = identity, provenance
        self.model, self.tokenizer, self.special_tokens = model, tokenizer, special_tokens
        self.query_encoder, self.tokenize_workers = query_encoder, tokenize_workers
        self.pipeline = Pipeline(self._embed, identity.dimension, compute)

    def num_flops(self, num_tokens_N: Int32Array) -> float:
        """Floating-point operations of the model for passages of these lengths."""
        lengths, counts = np.unique(num_tokens_N, return_counts=True)
        return float(sum(self.model.num_flops(int(n)) * int(c) for n, c in zip(lengths, counts, strict=True)))

    def matrix_rate(self) -> float:
        """FLOP/s of a large matrix product on the encoder's device, measured now."""
        return measure_matrix_rate(self.pipeline.compute)

    def encode_passages(self, texts: Texts) -> EncodedBatch:
        """Vectors of one window of texts.

        Raises:
            NotFiniteError: a vector is not finite in float16; names the row.
            OutOfDeviceMemory: the batches are too large for the device.
        """
        return self._encode_one(texts, self.identity.passage_prefix)

    def encode_windows(self, text_windows: Iterable[Texts]) -> Iterator[EncodedBatch]:
        """One result per window, in order. The next windows are tokenized and copied while one is computed."""
        started: deque[_Started] = deque()
        with self._tokenizers() as executor:
            for tokens in self._tokenize_ahead(executor, text_windows):
                started.append(self._start(tokens))
                # On a CPU a started window is complete. On a GPU a window is read after the next one is started.
                while len(started) > 1 or (started and started[0].work.done is None):
                    yield self._finish(started.popleft())
            yield from map(self._finish, started)

    def encode_queries(self, texts: Texts) -> Float32Array:
        """Vectors (Q, D) of texts as queries, rounded to float16 like those of passages."""
        encoder = self.query_encoder or self
        return encoder._encode_one(texts, self.identity.query_prefix).vectors_ND.astype(np.float32)

    def _encode_one(self, texts: Texts, prefix: str) -> EncodedBatch:
        return self._finish(self._start(tokenize(self.tokenizer, _with_prefix(texts, prefix))))

    def _tokenizers(self) -> Executor:
        if self.tokenize_workers == 0:
            return ThreadPoolExecutor(1)
        return ProcessPoolExecutor(self.tokenize_workers, mp_context=get_context("spawn"))

    def _tokenize_ahead(self, executor: Executor, text_windows: Iterable[Texts]) -> Iterator[TokenIds]:
        """Keep two windows per worker tokenized or in progress."""
        queue: deque[Future[TokenIds]] = deque()
        for texts in text_windows:
            passages = _with_prefix(texts, self.identity.passage_prefix)
            queue.append(executor.submit(tokenize, self.tokenizer, passages))
            if len(queue) > 2 * max(1, self.tokenize_workers):
                yield queue.popleft().result()
        yield from (future.result() for future in queue)

    def _start(self, tokens: TokenIds) -> _Started:
        """Start a window. After an error batches are not made smaller, because they depend only on lengths and budget."""
        plan = plan_batches(tokens.lengths_N, batch_tokens=self.pipeline.compute.batch_tokens)
        with self._device_errors():
            return _Started(tokens, self.pipeline.start(tokens.ids, tokens.offsets, plan))

    def _finish(self, window: _Started) -> EncodedBatch:
        with self._device_errors():
            vectors_ND = self.pipeline.finish(window.work)
        is_finite_N = np.isfinite(vectors_ND).all(1)
        if not is_finite_N.all():
            raise self._not_finite(window, int(np.argmin(is_finite_N)), int(np.count_nonzero(~is_finite_N)))
        return EncodedBatch(vectors_ND, window.tokens.lengths_N, window.tokens.num_truncated)

    @torch.inference_mode()
    def _not_finite(self, window: _Started, row: int, num_rows: int) -> NotFiniteError:
        """The error of a row. The row is computed again in float32 to see whether only float16 is too small for it."""
        tokens = window.tokens
        ids_T = tokens.ids[tokens.offsets[row] : tokens.offsets[row + 1]].astype(np.int32)
        with self._device_errors():
            exact_BD = self._embed(torch.from_numpy(ids_T)[None].to(self.pipeline.compute.device))
        if torch.isfinite(exact_BD).all():
            what = f"{num_rows} passages have values beyond 65,504, the largest number of float16, in which vectors are stored"
            remedy = "Make another space with 'retrodb embed --normalise': vectors of length 1 fit into float16."
            return NotFiniteError(what, row, remedy)
        remedy = "Check that the weights are complete, or try 'retrodb embed --dtype float32'."
        return NotFiniteError(f"the encoder gave NaN or infinite values for {num_rows} passages", row, remedy)

    @contextmanager
    def _device_errors(self) -> Iterator[None]:
        compute = self.pipeline.compute
        try:
            yield
        except torch.OutOfMemoryError as error:
            raise OutOfDeviceMemory(
                f"out of memory on {compute.device} with {compute.batch_tokens} tokens a batch",
                remedy="Use smaller batches: 'retrodb embed --batch-tokens N'.",
            ) from error
        except torch.AcceleratorError as error:
            raise RetroDBError(
                f"the device {compute.device} failed ({first_line(error)})",
                remedy="Run the same command again when the device works; finished parts are kept.",
            ) from error
        except (IndexError, RuntimeError, ValueError) as error:
            raise InputError(
                f"the model {self.provenance.name} failed at a batch ({first_line(error)})",
                remedy="Try a new space with a smaller 'retrodb embed --max-length', or use another encoder.",
            ) from error

    def _embed(self, ids_BL: Tensor) -> Tensor:
        """Pooled vectors (B, D) float32, normalised if the model requires it."""
        leading, trailing = self.special_tokens if self.identity.pooling_span == "content" else (0, 0)
        vectors_BD = pool(self.model(ids_BL), self.identity.pooling, leading=leading, trailing=trailing)
        vectors_BD = vectors_BD[:, : self.identity.dimension]  # before the normalisation, so that it gives unit length
        return F.normalize(vectors_BD, dim=1) if self.identity.normalise else vectors_BD


def first_line(error: BaseException) -> str:
    """The first line of a message, or the kind of the error if it has none."""
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__


def _with_prefix(texts: Texts, prefix: str) -> list[str]:
    strings = list(texts) if isinstance(texts, Sequence) else texts.to_pylist()
    return [prefix + text for text in strings] if prefix else strings
