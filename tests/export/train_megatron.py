"""A Megatron training run up to its samples: `config.json`, megatron-core's GPT data sets, and its RETRO data sets on top.

One JSON question a line, one JSON answer a line. Nothing is told about the samples except what a trainer is told: the project
folder, and the split. With MEGATRON_LM, the folder of a checkout that still has RETRO, its own `load_retro_args` reads the file,
and with NEMO, that of NeMo 2, its `load_retro_config` too.
"""

from __future__ import annotations

import ast
import json
import os
import sys
import tempfile
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from types import SimpleNamespace

warnings.simplefilter("ignore")
SUBSETS = ("train", "valid", "test")


def arguments(project: str) -> SimpleNamespace:
    """The arguments of a training run after the preprocessing's `config.json` was read."""
    args = SimpleNamespace(retro_project_dir=project, data_path=None)
    if checkout := os.environ.get("MEGATRON_LM"):
        functions_of(f"{checkout}/megatron/training/arguments.py", "load_retro_config", "load_retro_args")[
            "load_retro_args"
        ](args)
        return args
    with open(os.path.join(project, "config.json")) as file:
        config = json.load(file)
    path = list(config["retro_gpt_data_path"])
    assert len(path) == 1 or len(path) % 2 == 0
    for place in range(len(path) - 1, -1, -2):
        path[place] = os.path.join(project, "data", path[place])
    args.data_path = path
    for name in ("seed", "seq_length", "train_samples", "eval_interval", "eval_iters", "global_batch_size"):
        setattr(args, name, config[f"retro_gpt_{name}"])
    args.data_cache_path = config["retro_gpt_data_cache_path"]
    args.tokenizer_type = config["retro_gpt_tokenizer_type"]
    args.tokenizer_model = os.path.join(project, config["retro_gpt_tokenizer_model"])
    args.retro_block_size = config["retro_block_size"]
    args.retro_chunk_length = config["retro_gpt_chunk_length"]
    args.retro_neighbor_dirs = config["retro_neighbor_dirs"]
    args.retro_split_preprocessing = config["retro_gpt_split"]
    return args


def functions_of(path: str, *names: str) -> dict[str, Callable[..., object]]:
    """Functions of a file by name, without importing all that the file imports."""
    import types

    from megatron.core.models.retro.utils import get_config_path, get_gpt_data_dir

    with open(path) as file:
        tree = ast.parse(file.read())
    found = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name in names]
    namespace = {
        "os": os,
        "json": json,
        "types": types,
        "get_retro_config_path": get_config_path,
        "get_retro_data_dir": get_gpt_data_dir,
        "open_dict": nullcontext,
        "DictConfig": object,
    }
    exec(compile(ast.Module(found, []), path, "exec"), namespace)
    return namespace


def check_nemo(checkout: str, args: SimpleNamespace) -> None:
    """NeMo's model reads the same from the project as Megatron."""
    path = f"{checkout}/nemo/collections/nlp/models/language_modeling/megatron_retro_model.py"
    retro = {"retro_project_dir": args.retro_project_dir}
    data = SimpleNamespace(retro_data=SimpleNamespace())
    cfg = SimpleNamespace(retro=retro, data=data, tokenizer=SimpleNamespace())
    functions_of(path, "load_retro_config")["load_retro_config"](None, cfg)
    assert cfg.data.data_prefix == args.data_path
    assert cfg.tokenizer.model == args.tokenizer_model
    assert cfg.data.seq_length == args.seq_length
    assert cfg.retro_train_samples_with_neighbors == args.train_samples
    steps = args.train_samples // args.global_batch_size
    valid = (steps // args.eval_interval + 1) * args.eval_iters * args.global_batch_size
    assert cfg.retro_valid_samples_with_neighbors in (0, valid)
    assert cfg.data.retro_data.retro_neighbor_dirs == args.retro_neighbor_dirs


def main() -> None:
    import torch
    from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
    from megatron.core.datasets.retro.query.multi_split_gpt_dataset import (
        MultiSplitGPTDataset,
        MultiSplitGPTDatasetConfig,
    )
    from megatron.core.datasets.retro.query.retro_dataset import get_retro_datasets
    from megatron.core.datasets.utils import get_blend_from_list
    from transformers import AutoTokenizer

    question = json.loads(sys.stdin.readline())
    args = arguments(question["project"])
    if checkout := os.environ.get("NEMO"):
        check_nemo(checkout, args)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tempfile.mkdtemp()}/init", rank=0, world_size=1)
    assert args.tokenizer_type == "HuggingFaceTokenizer"
    tokenizer = AutoTokenizer.from_pretrained(args.tokenizer_model)
    steps = args.train_samples // args.global_batch_size
    validations = (steps // args.eval_interval + 1) * args.eval_iters
    counts = (
        args.train_samples,
        validations * args.global_batch_size,
        args.eval_iters * args.global_batch_size,
    )
    config = MultiSplitGPTDatasetConfig(
        random_seed=args.seed,
        sequence_length=args.seq_length,
        blend=get_blend_from_list(args.data_path),
        split=question["split"],
        split_preprocessing=args.retro_split_preprocessing,
        path_to_cache=args.data_cache_path,
        return_document_ids=False,
        tokenizer=SimpleNamespace(unique_identifiers={"class": "test"}, eod=tokenizer.eos_token_id, pad=-1),
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
    )
    gpt = BlendedMegatronDatasetBuilder(MultiSplitGPTDataset, list(counts), lambda: True, config).build()
    retro = SimpleNamespace(  # RetroConfig itself cannot be made where no Transformer Engine is
        retro_project_dir=question["project"],
        retro_block_size=args.retro_block_size,
        retro_chunk_length=args.retro_chunk_length,
        retro_neighbor_dirs=args.retro_neighbor_dirs,
        retro_num_neighbors=question["k"],
        retro_num_retrieved_chunks=2,
        retro_verify_neighbor_count=True,
    )
    pairs = dict(zip(SUBSETS, zip(gpt, counts, strict=True), strict=True))
    subsets = dict(zip(SUBSETS, get_retro_datasets(retro, pairs, args.seq_length, tokenizer.eos_token_id), strict=True))
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        if asked == "counts":
            answer = {
                name: 0 if dataset is None else count
                for (name, dataset), count in zip(subsets.items(), counts, strict=True)
            }
            print(json.dumps({"samples": answer, "eod": tokenizer.eos_token_id}), flush=True)
            continue
        sample = subsets[asked[0]][asked[1]]
        print(json.dumps({name: sample[name].tolist() for name in ("text", "neighbor_tokens")}), flush=True)


main()
