"""Models that `bert.LeanBert` cannot compute, computed by `transformers`.

Shapes: B rows of a batch, L tokens each, D hidden width.
"""

from __future__ import annotations

import inspect
from pathlib import Path

import torch
from torch import Tensor

from retrodb.encode.transformer_encoder import first_line
from retrodb.errors import InputError

# Of these models only the encoder is loaded, as in sentence-transformers.
ENCODER_CLASSES = {
    "t5": "T5EncoderModel",
    "mt5": "MT5EncoderModel",
    "umt5": "UMT5EncoderModel",
    "longt5": "LongT5EncoderModel",
    "switch_transformers": "SwitchTransformersEncoderModel",
}
# Parts of a model that the last hidden state does not depend on. Without weights they are random.
UNUSED_PARTS = ("pooler", "lm_head", "classifier", "qa_outputs", "cls.")
REMEDY = "Use an encoder that transformers can load without code of the model."


class TransformersModel:
    """`model(ids_BL)` is the last hidden state (B, L, D) of a model that `AutoModel` loads."""

    def __init__(self, folder: Path, *, model_type: str, device: str, dtype: torch.dtype) -> None:
        """Raises InputError if `transformers` cannot load the folder without running code of the model."""
        import transformers

        loader = getattr(transformers, ENCODER_CLASSES.get(model_type, "AutoModel"))
        try:
            model, report = loader.from_pretrained(
                folder,
                dtype=dtype,
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
        except Exception as error:  # transformers has no common class for its errors
            raise InputError(
                f"transformers cannot load the model of type '{model_type}' ({first_line(error)})",
                where=str(folder),
                remedy=REMEDY,
            ) from error
        missing = sorted(name for name in report["missing_keys"] if not _is_unused(name))
        if missing:
            raise InputError(
                f"the weights have no tensor '{missing[0]}', which the model of type '{model_type}' needs",
                where=str(folder),
                remedy="Download the model again.",
            )
        self.model = model.to(device).eval()
        self.takes_mask = "attention_mask" in inspect.signature(self.model.forward).parameters
        self.num_embeddings = int(model.get_input_embeddings().weight.shape[0])
        positions = getattr(model.config, "max_position_embeddings", None)
        # Positions of T5 are relative, and XLNet has -1.
        self.max_length = positions if isinstance(positions, int) and positions > 0 else None
        matrices = sum(weight.numel() for weight in model.parameters() if weight.dim() == 2)
        self.flops_per_token = 2 * (matrices - model.get_input_embeddings().weight.numel())

    def __call__(self, ids_BL: Tensor) -> Tensor:
        mask = {"attention_mask": torch.ones_like(ids_BL)} if self.takes_mask else {}
        hidden: Tensor = self.model(input_ids=ids_BL.long(), **mask).last_hidden_state
        return hidden

    def num_flops(self, length: int) -> int:
        """Floating-point operations of one row, estimated from the parameters, without attention scores."""
        return int(self.flops_per_token * length)


def _is_unused(name: str) -> bool:
    return any(part in name for part in UNUSED_PARTS)
