"""retro-pytorch's own dataset as a process that stays: an export to open, or a row number, a line; a JSON line each as answer.

Runs in an environment of its own, where nothing of retrodb is installed.
"""

import json
import os
import sys
import warnings

warnings.simplefilter("ignore")


def main():
    import numpy as np
    from retro_pytorch import RETRODataset

    dataset = None
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        question = json.loads(line)
        if isinstance(question, dict):
            dataset = opened(question, np, RETRODataset)
            answer = len(dataset)
        else:
            tokens, retrieved = dataset[question]
            answer = [tokens.tolist(), retrieved[0].tolist()]
        print(json.dumps(answer), flush=True)


def opened(question, np, dataset_class):
    """The dataset of an export, with every row as a sequence of one chunk."""
    out, num_chunks = question["out"], question["chunks"]
    rows = os.path.join(question["scratch"], "rows.dat")
    np.arange(num_chunks, dtype=np.int32).tofile(rows)
    size = os.path.getsize(os.path.join(out, "train.chunks.knn.dat"))
    return dataset_class(
        num_chunks=num_chunks,
        chunk_size=64,
        seq_len=64,
        num_sequences=num_chunks,
        num_neighbors=size // 4 // (num_chunks + 64),
        chunk_memmap_path=os.path.join(out, "train.chunks.dat"),
        chunk_nn_memmap_path=os.path.join(out, "train.chunks.knn.dat"),
        seq_memmap_path=rows,
        eos_id=question["eos_id"],
    )


main()
