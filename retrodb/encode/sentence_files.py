"""The configuration files of sentence-transformers. Every field takes effect, or the model is refused with its name.

    modules.json                         the modules, in order: Transformer, Pooling, then Normalize or Dropout
    config_sentence_transformers.json    prompts, similarity, truncation of vectors
    sentence_bert_config.json            length and lower case of the Transformer (older models: other names, a subfolder)
    1_Pooling/config.json                how token vectors become one vector
    2_Normalize/config.json              which vector is normalised

Source: sentence-transformers 0.2 to 6.2.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from retrodb.encode.identity import Pooling
from retrodb.encode.model_folder import read_json_value, read_model_json
from retrodb.errors import InputError

POOLINGS: dict[str, Pooling] = {
    "mean": "mean",
    "cls": "cls",
    "max": "max",
    "mean_sqrt_len_tokens": "mean_sqrt_len",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len",
}
SIMILARITIES = (None, "cosine", "dot", "dot_product", "euclidean", "manhattan")
TRANSFORMER_CONFIGS = tuple(
    f"sentence_{name}_config.json"
    for name in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
# Settings of sentence_bert_config.json that change nothing if they have this value.
NEUTRAL: dict[str, tuple[object, ...]] = {
    "transformer_task": (None, "feature-extraction"),
    "module_output_name": (None, "token_embeddings"),
    "processing_kwargs": (None, {}),
    "query_length": (None,),
    "document_length": (None,),
    "query_expansion": (None,),
    "tokenizer_name_or_path": (None, ""),
}
# Arguments that change the speed or the place of a model, but not its vectors.
SPEED_ARGUMENTS = frozenset(
    {"attn_implementation", "device_map", "dtype", "torch_dtype", "trust_remote_code", "use_cache", "use_fast"}
)
ARGUMENTS = ("model_args", "model_kwargs", "tokenizer_args", "processor_kwargs", "config_args", "config_kwargs")
TEXT_FORWARD = {"method": "forward", "method_output_name": "last_hidden_state"}
REMEDY = "Use another model, or change the file if you know that the setting is not needed."


@dataclass(frozen=True)
class Modules:
    """The modules of a model: where the Transformer is, how it is pooled, and whether vectors get unit length."""

    transformer: Path  # the folder of config.json, the weights and the tokenizer
    pooling: Pooling | None = None  # None: the model has no modules.json
    embedding_dimension: int | None = None  # that the pooling expects
    normalise: bool = False


@dataclass(frozen=True)
class SentenceConfig:
    """`config_sentence_transformers.json`."""

    prompts: dict[str, str] = field(default_factory=dict)
    default_prompt: str = ""
    similarity: str | None = None
    truncate_dim: int | None = None


@dataclass(frozen=True)
class TransformerConfig:
    """`sentence_bert_config.json`, and the length of `tokenizer_config.json`."""

    max_length: int | None = None  # tokens; None: no limit is given
    lowercase: bool = False


def read_modules(folder: Path) -> Modules:
    """The modules of a model folder.

    Raises:
        InputError: a module is not supported, or they are not in the order that retrodb computes.
    """
    path = folder / "modules.json"
    if not path.is_file():
        return Modules(folder)
    entries = read_json_value(path)
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise InputError("not a list of modules", where=str(path), remedy="Download the model again.")
    modules, kinds = Modules(folder), []
    for entry in entries:
        _refuse_unknown(entry, {"idx", "name", "path", "type", "kwargs"}, path, "module setting")
        kind, place = _kind(entry, path), folder / _subfolder(entry, path)
        kinds.append(kind)
        if kind == "Transformer":
            modules = Modules(place, modules.pooling, modules.embedding_dimension, modules.normalise)
        elif kind == "Pooling":
            pooling, dimension = _pooling(place / "config.json")
            modules = Modules(modules.transformer, pooling, dimension, modules.normalise)
        elif kind == "Normalize":
            _check_normalize(place / "config.json")
            modules = Modules(modules.transformer, modules.pooling, modules.embedding_dimension, normalise=True)
    kinds = [kind for kind in kinds if kind != "Dropout"]  # it does nothing when a model is used
    if kinds[:2] != ["Transformer", "Pooling"] or set(kinds[2:]) - {"Normalize"}:
        order = ", ".join(kinds) or "none"
        raise InputError(
            f"the modules are {order}, and retrodb computes Transformer, Pooling and then Normalize",
            where=str(path),
            remedy="Use a model with these modules.",
        )
    return modules


def read_sentence_config(folder: Path) -> SentenceConfig:
    """The prompts, similarity and truncation of a model.

    Raises:
        InputError: a setting is unknown or invalid, or the model is not an encoder of one vector per text.
    """
    path = folder / "config_sentence_transformers.json"
    if not path.is_file():
        return SentenceConfig()
    config = read_model_json(path)
    known = {"__version__", "model_type", "prompts", "default_prompt_name", "similarity_fn_name", "truncate_dim"}
    _refuse_unknown(config, known, path, "setting")
    kind = config.get("model_type") or "SentenceTransformer"
    if kind != "SentenceTransformer":
        raise _refused(path, f"the model is a {kind}, which does not have one vector per text")
    prompts = config.get("prompts") or {}
    if not isinstance(prompts, dict) or not all(isinstance(text, str | None) for text in prompts.values()):
        raise _refused(path, "'prompts' is not a table of texts")
    similarity, truncate_dim = config.get("similarity_fn_name"), config.get("truncate_dim")
    if not isinstance(similarity, str | None) or similarity not in SIMILARITIES:
        raise _refused(path, f"'similarity_fn_name' has the unknown value {similarity!r}")
    name = config.get("default_prompt_name")
    if not isinstance(name, str | None) or name not in (None, "query", "document", *prompts):
        raise _refused(path, f"'default_prompt_name' is {name!r}, which is not one of the prompts")
    texts = {prompt: text for prompt, text in prompts.items() if text is not None}
    return SentenceConfig(
        prompts=texts,
        default_prompt=texts.get(name or "", ""),
        similarity=similarity,
        truncate_dim=_count(truncate_dim, "'truncate_dim'", path),
    )


def read_transformer_config(folder: Path) -> TransformerConfig:
    """The length and the lower case of the texts of a Transformer module.

    Raises:
        InputError: a setting is unknown, invalid, or changes the vectors in a way that retrodb cannot compute.
    """
    path = next((folder / name for name in TRANSFORMER_CONFIGS if (folder / name).is_file()), None)
    config = read_model_json(path) if path is not None else {}
    path = path or folder / TRANSFORMER_CONFIGS[0]
    _refuse_unknown(
        config,
        {*NEUTRAL, *ARGUMENTS, "max_seq_length", "do_lower_case", "modality_config", "unpad_inputs"},
        path,
        "setting",
    )
    for name, values in NEUTRAL.items():
        if config.get(name) not in values:
            raise _refused(path, f"retrodb cannot compute '{name}': {config[name]!r}")
    modalities = config.get("modality_config")
    if modalities is not None and not (isinstance(modalities, dict) and modalities.get("text") == TEXT_FORWARD):
        raise _refused(path, f"retrodb cannot compute 'modality_config': {modalities!r}")
    lowercase = config.get("do_lower_case") or False
    if not isinstance(lowercase, bool):
        raise _refused(path, f"'do_lower_case' has the invalid value {lowercase!r}")
    length = _length_argument(config, path) or _length(config, "max_seq_length", path)
    tokenizer_path = folder / "tokenizer_config.json"
    if length is None and tokenizer_path.is_file():
        length = _length(read_model_json(tokenizer_path), "model_max_length", tokenizer_path)
    return TransformerConfig(length, lowercase)


def _kind(entry: Mapping[str, object], path: Path) -> str:
    type_name = entry.get("type")
    package, _, kind = type_name.rpartition(".") if isinstance(type_name, str) else ("", "", "")
    if not package.startswith("sentence_transformers."):
        raise InputError(
            f"the module '{type_name}' is code of the model, which retrodb does not run",
            where=str(path),
            remedy="Use a model that has only modules of sentence-transformers.",
        )
    if kind not in ("Transformer", "Pooling", "Normalize", "Dropout"):
        raise InputError(
            f"the model has a module '{kind}', which retrodb cannot compute",
            where=str(path),
            remedy="Use a model that has only Transformer, Pooling and Normalize.",
        )
    return kind


def _subfolder(entry: Mapping[str, object], path: Path) -> str:
    place = entry.get("path", "")
    if not isinstance(place, str) or PurePosixPath(place).is_absolute() or ".." in PurePosixPath(place).parts:
        raise InputError(f"the path of a module is {place!r}", where=str(path), remedy="Download the model again.")
    return place


def _pooling(path: Path) -> tuple[Pooling, int | None]:
    config = read_model_json(path)
    legacy = {name: is_on for name, is_on in config.items() if name.startswith("pooling_mode_")}
    known = {"pooling_mode", "include_prompt", "embedding_dimension", "word_embedding_dimension", *legacy}
    _refuse_unknown(config, known, path, "setting")
    mode = config.get("pooling_mode")  # the new form: one name or several
    modes = [mode] if isinstance(mode, str) else list(mode) if isinstance(mode, list) else []
    modes = modes or [name for name, is_on in legacy.items() if is_on] or ["mean"]
    if len(modes) != 1 or modes[0] not in POOLINGS:
        raise InputError(
            f"retrodb cannot compute the pooling '{' + '.join(map(str, modes))}'",
            where=str(path),
            remedy="Use a model with one of mean, cls, max, mean_sqrt_len_tokens.",
        )
    if config.get("include_prompt") is False:
        raise InputError(
            "the pooling leaves out the prompt, which retrodb cannot compute",
            where=str(path),
            remedy="Use a model whose pooling includes the prompt.",
        )
    dimension = config.get("embedding_dimension", config.get("word_embedding_dimension"))
    return POOLINGS[modes[0]], _count(dimension, "the embedding dimension", path)


def _check_normalize(path: Path) -> None:
    if not path.is_file():
        return
    config = read_model_json(path)
    _refuse_unknown(config, {"module_input_name", "module_output_name"}, path, "setting")
    for name, value in config.items():
        if value not in (None, "sentence_embedding"):
            raise _refused(path, f"retrodb cannot compute '{name}': {value!r}")


def _length_argument(config: Mapping[str, object], path: Path) -> int | None:
    """The length in the arguments of the tokenizer. All other arguments must not change the vectors."""
    length = None
    for name in ARGUMENTS:
        arguments = config.get(name) or {}
        if not isinstance(arguments, dict):
            raise _refused(path, f"'{name}' is not a table")
        is_of_tokenizer = name in ("tokenizer_args", "processor_kwargs")
        _refuse_unknown(arguments, SPEED_ARGUMENTS | ({"model_max_length"} if is_of_tokenizer else set()), path, name)
        if is_of_tokenizer:
            length = _length(arguments, "model_max_length", path) or length
    return length


def _length(config: Mapping[str, object], name: str, path: Path) -> int | None:
    value = config.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 1:
        raise _refused(path, f"'{name}' has the invalid value {value!r}")
    return int(min(value, 1e30))  # transformers writes 10^30 for "no limit"


def _count(value: object, what: str, path: Path) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise _refused(path, f"{what} has the invalid value {value!r}")
    return value


def _refuse_unknown(config: Mapping[str, object], known: Collection[str], path: Path, what: str) -> None:
    unknown = sorted(set(config) - set(known))
    if unknown:
        raise _refused(path, f"retrodb does not know the {what} '{unknown[0]}'")


def _refused(path: Path, what: str) -> InputError:
    return InputError(what, where=str(path), remedy=REMEDY)
