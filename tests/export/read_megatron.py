"""Megatron-core's own RETRO reader as a process that stays: one JSON question a line, one JSON answer a line.

It reads what a training run reads, and keeps open what a training run keeps open.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import warnings
from types import SimpleNamespace

warnings.simplefilter("ignore")


class Rows:
    """Stands for a GPT dataset: samples of given tokens."""

    unique_description_hash = "rows"

    def __init__(self, samples: list[list[int]]) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> dict[str, object]:
        import numpy as np

        return {"text": np.array(self.samples[index]), "document_ids": [0]}


def main() -> None:
    import torch
    from megatron.core.datasets.retro.query.retro_dataset import get_retro_datasets

    question = json.loads(sys.stdin.readline())
    project = question["project"]
    with open(os.path.join(project, "config.json")) as file:
        card = json.load(file)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tempfile.mkdtemp()}/init", rank=0, world_size=1)
    config = SimpleNamespace(  # RetroConfig itself cannot be made where no Transformer Engine is
        retro_project_dir=project,
        retro_block_size=card["retro_block_size"],
        retro_chunk_length=card["retro_gpt_chunk_length"],
        retro_neighbor_dirs=card["retro_neighbor_dirs"],
        retro_num_neighbors=question["k"],
        retro_num_retrieved_chunks=2,
        retro_verify_neighbor_count=True,
    )
    samples = Rows(question["samples"])
    sets = {"train": (samples, len(samples)), "valid": (None, 0), "test": (None, 0)}
    train, _, _ = get_retro_datasets(config, sets, card["retro_gpt_seq_length"], question["eod"])
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        sample = train[json.loads(line)]
        print(
            json.dumps({name: value.tolist() for name, value in sample.items() if name != "document_ids"}), flush=True
        )


main()
