"""Sequence classifiers from the Hugging Face hub or a folder: the probability of one label.

A text longer than the maximum of the model is cut into windows that overlap by a quarter, so that text at a cut is also seen
whole. The score is the highest probability of all windows. Weights are only read from safetensors, and no code of the model
is run.

Legend: M texts, W windows, B windows of a batch, L tokens, C labels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Protocol, cast

import numpy as np

from retrodb.encode.device import choose_compute
from retrodb.encode.identity import digest_json
from retrodb.encode.model_folder import (
    digest_config,
    digest_weights,
    find_model,
    read_model_json,
    read_tokenizer,
    weight_files,
)
from retrodb.errors import InputError, UsageError
from retrodb.screen.definition import TaggerDefinition

if TYPE_CHECKING:
    import pyarrow as pa
    from tokenizers import Encoding, Tokenizer
    from torch import Tensor

    from retrodb.format.arrays import Float64Array

_BATCH_TOKENS = 8192
_LIBRARIES_BYTES = 400 << 20  # PyTorch, transformers, and the activations of a batch
_MAX_TOKENS = 512  # of a window, for models without a maximum


class _Output(Protocol):
    logits: Tensor  # (B, C)


class _Model(Protocol):
    """The part of a `transformers` classifier that is used here."""

    def __call__(self, *, input_ids: Tensor, attention_mask: Tensor) -> _Output: ...


@dataclass(frozen=True)
class ClassifierDefinition(TaggerDefinition):
    """What the scores of a classifier depend on."""

    kind: ClassVar[str] = "hf-model"

    label: int
    activation: str  # "softmax" or "sigmoid"
    max_tokens: int
    weights: str  # SHA-256
    config: str  # SHA-256
    tokenizer: str  # SHA-256


@dataclass(frozen=True)
class Classifier:
    """A classifier in a folder. Another process loads it from there again."""

    folder: str
    label: int  # index of the label
    activation: str  # "softmax": exactly one label applies; "sigmoid": each label applies or not
    max_tokens: int  # of a window, including special tokens
    device: str  # on which it is computed; not part of the definition
    weights: str  # SHA-256 of the weights
    config: str  # SHA-256 of the settings
    tokenizer: str  # SHA-256 of the tokenizer

    def definition(self) -> ClassifierDefinition:
        """The label, and the digests of the model."""
        return ClassifierDefinition(
            self.label, self.activation, self.max_tokens, self.weights, self.config, self.tokenizer
        )

    def score(self, texts: pa.LargeStringArray) -> Float64Array:
        """(M,) the highest probability of the label in any window. Windows are batched by length."""
        tokenizer, _ = self._loaded
        encodings = tokenizer.encode_batch_fast(texts.to_pylist())
        windows = [(row, part) for row, whole in enumerate(encodings) for part in (whole, *whole.overflowing)]
        windows.sort(key=lambda window: -len(window[1].ids))
        scores, start = np.zeros(len(texts)), 0
        while start < len(windows):
            length = max(len(windows[start][1].ids), 1)
            batch = windows[start : start + max(1, _BATCH_TOKENS // length)]
            np.maximum.at(scores, [row for row, _ in batch], self._probabilities([part for _, part in batch], length))
            start += len(batch)
        return scores

    @property
    def memory_bytes(self) -> int:
        """Memory of a process that scores with it: PyTorch, transformers, and the weights as read and as they are used."""
        return _LIBRARIES_BYTES + 2 * sum(file.stat().st_size for file in weight_files(Path(self.folder)))

    def excerpt(self, text: str) -> list[str]:
        """An empty list: a classifier cannot tell."""
        del text
        return []

    def _probabilities(self, parts: list[Encoding], length: int) -> Float64Array:
        """(B,) the label's probability in windows of at most `length` tokens."""
        import torch

        ids_BL, mask_BL = (torch.zeros((len(parts), length), dtype=torch.long) for _ in range(2))
        for row, part in enumerate(parts):
            ids_BL[row, : len(part.ids)] = torch.tensor(part.ids)
            mask_BL[row, : len(part.ids)] = 1
        _, model = self._loaded
        with torch.inference_mode(), _one_thread():
            logits_BC = model(input_ids=ids_BL.to(self.device), attention_mask=mask_BL.to(self.device)).logits.float()
            all_BC = logits_BC.sigmoid() if self.activation == "sigmoid" else logits_BC.softmax(dim=-1)
        values: Float64Array = all_BC[:, self.label].double().cpu().numpy()
        return values

    @cached_property
    def _loaded(self) -> tuple[Tokenizer, _Model]:
        from tokenizers import Tokenizer
        from transformers import AutoModelForSequenceClassification, logging

        logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        tokenizer = Tokenizer.from_str(read_tokenizer(Path(self.folder)))
        room = self.max_tokens - tokenizer.num_special_tokens_to_add(is_pair=False)
        tokenizer.enable_truncation(self.max_tokens, stride=max(room // 4, 0))
        model = AutoModelForSequenceClassification.from_pretrained(
            self.folder, local_files_only=True, use_safetensors=True, trust_remote_code=False
        )
        return tokenizer, cast("_Model", model.eval().to(self.device))


@contextmanager
def _one_thread() -> Iterator[None]:
    """Compute with one thread: the last bits of sums depend on the number of threads. Processes run in parallel instead."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def load_classifier(name: str, label: str | None, device: str = "auto") -> Classifier:
    """The classifier of a folder or a hub name.

    Args:
        label: its name or number; may be None if the model has only one.

    Raises:
        InputError: the model does not exist, or is not a classifier with safetensors.
        UsageError: the model does not have this label.
    """
    folder, _ = find_model(name)
    config = read_model_json(folder / "config.json")
    architectures = cast("Sequence[str]", config.get("architectures") or ())
    if not any(name.endswith("ForSequenceClassification") for name in architectures):
        raise InputError(
            f"not a sequence classifier ({', '.join(architectures or ['unknown'])})",
            where=str(folder),
            remedy="Use a model that was trained to classify texts.",
        )
    names = cast("Mapping[str, str]", config.get("id2label") or {"0": "0", "1": "1"})
    labels = {int(number): str(name) for number, name in names.items()}
    is_multi_label = len(labels) == 1 or config.get("problem_type") == "multi_label_classification"
    return Classifier(
        folder=str(folder),
        label=_label(labels, label, str(folder)),
        activation="sigmoid" if is_multi_label else "softmax",
        max_tokens=min(int(cast("int", config.get("max_position_embeddings", _MAX_TOKENS))), _MAX_TOKENS),
        device=choose_compute(device).device,
        weights=digest_weights(weight_files(folder)),
        config=digest_config(config),
        tokenizer=digest_json(read_tokenizer(folder)),
    )


def _label(labels: dict[int, str], name: str | None, folder: str) -> int:
    """The number of a label, from its name or number."""
    if name is None and len(labels) == 1:
        return next(iter(labels))
    for number, text in labels.items():
        if name is not None and name.casefold() in (text.casefold(), str(number)):
            return number
    choices = ", ".join(f"{text} ({number})" for number, text in sorted(labels.items()))
    what = "the classifier has several labels" if name is None else f"the classifier has no label '{name}'"
    raise UsageError(what, where=folder, remedy=f"Choose one with --label: {choices}.")
