"""Sequence classifiers from the Hugging Face hub or a folder: the probability of one label.

A text longer than the model reads is cut into windows that overlap by a quarter, so that what stands at a cut is seen whole;
the score is the highest probability of any of them. Weights come from safetensors only and no code of the model is run.

Legend: M texts, W windows, B windows of a batch, L tokens, C labels.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from retrodb.encode.conventions import digest_config, digest_weights, read_json, weight_files
from retrodb.encode.device import choose_compute
from retrodb.encode.identity import digest_json
from retrodb.encode.resolve import find_model, read_tokenizer
from retrodb.errors import InputError, UsageError

if TYPE_CHECKING:
    import pyarrow as pa
    from tokenizers import Tokenizer

    from retrodb.format.arrays import Float64Array

_BATCH_TOKENS = 8192
_MAX_TOKENS = 512  # of a window, for models that name no maximum


@dataclass(frozen=True)
class Classifier:
    """A classifier by its folder: another process loads it anew."""

    folder: str
    label: int  # its index
    activation: str  # "softmax": one of the labels holds; "sigmoid": each for itself
    max_tokens: int  # of a window, special ones included
    device: str  # where it is computed: not part of its identity
    digests: tuple[tuple[str, str], ...]  # of weights, configuration and tokenizer

    def definition(self) -> dict[str, Any]:
        """Digests of what gives the scores, and the label."""
        own = {"label": self.label, "activation": self.activation, "max_tokens": self.max_tokens}
        return {"kind": "hf-model", **own, **dict(self.digests)}

    def score(self, texts: pa.LargeStringArray) -> Float64Array:
        """(M,) the label's probability in the window where it is highest; windows are batched by length."""
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

    def excerpt(self, text: str) -> list[str]:
        """None: a classifier does not say."""
        del text
        return []

    def _probabilities(self, parts: list[Any], length: int) -> Float64Array:
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
    def _loaded(self) -> tuple[Tokenizer, Any]:
        from tokenizers import Tokenizer
        from transformers import AutoModelForSequenceClassification, logging

        logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        tokenizer = Tokenizer.from_str(read_tokenizer(Path(self.folder)))
        room = self.max_tokens - tokenizer.num_special_tokens_to_add(is_pair=False)
        tokenizer.enable_truncation(self.max_tokens, stride=max(room // 4, 0))
        model = AutoModelForSequenceClassification.from_pretrained(
            self.folder, local_files_only=True, use_safetensors=True, trust_remote_code=False
        )
        return tokenizer, model.eval().to(self.device)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Processes are what runs side by side; the order in which threads add up would show in the last bits."""
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
        label: its name or number; a model that has only one needs none.

    Raises:
        InputError: when it is not there, or is no classifier with safetensors.
        UsageError: for a label that it has not.
    """
    folder, _ = find_model(name)
    config = read_json(folder / "config.json")
    if not any(kind.endswith("ForSequenceClassification") for kind in config.get("architectures") or ()):
        raise InputError(
            f"no sequence classifier ({', '.join(config.get('architectures') or ['unknown'])})",
            where=str(folder),
            remedy="Give a model that was trained to classify texts.",
        )
    labels = {int(number): str(text) for number, text in (config.get("id2label") or {0: "0", 1: "1"}).items()}
    is_each = len(labels) == 1 or config.get("problem_type") == "multi_label_classification"
    digests = {
        "weights": digest_weights(weight_files(folder)),
        "config": digest_config(config),
        "tokenizer": digest_json(read_tokenizer(folder)),
    }
    return Classifier(
        folder=str(folder),
        label=_label(labels, label, str(folder)),
        activation="sigmoid" if is_each else "softmax",
        max_tokens=min(int(config.get("max_position_embeddings", _MAX_TOKENS)), _MAX_TOKENS),
        device=choose_compute(device).device,
        digests=tuple(digests.items()),
    )


def _label(labels: dict[int, str], wanted: str | None, folder: str) -> int:
    """The number of a label that is given by name or number."""
    if wanted is None and len(labels) == 1:
        return next(iter(labels))
    for number, text in labels.items():
        if wanted is not None and wanted.casefold() in (text.casefold(), str(number)):
            return number
    have = ", ".join(f"{text} ({number})" for number, text in sorted(labels.items()))
    what = "the classifier has several labels" if wanted is None else f"the classifier has no label '{wanted}'"
    raise UsageError(what, where=folder, remedy=f"Choose one with --label: {have}.")
