"""Models that `bert.LeanBert` cannot compute, computed by `transformers`.

Shapes: B rows of a batch, L tokens each, D hidden width.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from retrodb.errors import InputError


class TransformersModel:
    """`model(ids_BL)` is the last hidden state (B, L, D) of a model that `AutoModel` loads."""

    def __init__(self, folder: Path, *, device: str, dtype: torch.dtype) -> None:
        """Raises InputError if `transformers` cannot load the folder without running code of the model."""
        from transformers import AutoModel

        try:
            model = AutoModel.from_pretrained(
                folder, dtype=dtype, use_safetensors=True, local_files_only=True, trust_remote_code=False
            )
        except (OSError, ValueError) as error:
            raise InputError(
                f"transformers cannot load the model ({error})",
                where=str(folder),
                remedy="Use an encoder that transformers can load without code of the model.",
            ) from error
        self.model = model.to(device).eval()
        self.hidden = int(model.config.hidden_size)
        self.num_embeddings = int(model.get_input_embeddings().weight.shape[0])
        self.max_length = int(getattr(model.config, "max_position_embeddings", 512))
        matrices = sum(weight.numel() for weight in model.parameters() if weight.dim() == 2)
        self.flops_per_token = 2 * (matrices - model.get_input_embeddings().weight.numel())

    def __call__(self, ids_BL: Tensor) -> Tensor:
        hidden: Tensor = self.model(input_ids=ids_BL.long(), attention_mask=torch.ones_like(ids_BL)).last_hidden_state
        return hidden

    def num_flops(self, length: int) -> int:
        """Floating-point operations of one row, estimated from the parameters, without attention scores."""
        return int(self.flops_per_token * length)
