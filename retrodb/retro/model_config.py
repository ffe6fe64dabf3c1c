"""The shape of a RETRO model, and the named sizes."""

from __future__ import annotations

from dataclasses import dataclass, replace

from retrodb.errors import ConfigError


@dataclass(frozen=True)
class RetroConfig:
    """Everything that determines the weights of a model before training."""

    vocab_size: int  # tokens of the language model; one more embedding row, with this number as its id, is padding
    width: int = 896  # of the decoder's activations
    layers: int = 12  # of the decoder
    heads: int = 16  # per attention, in decoder and encoder
    head_width: int = 64  # of one head; even, because rotary positions rotate pairs
    cross_layers: tuple[int, ...] = (6, 9, 12)  # decoder layers, from 1, with chunked cross-attention
    encoder_layers: int = 2  # of the neighbour encoder
    encoder_width: int = 896  # of the neighbour encoder's activations
    chunk_tokens: int = 64  # m in the paper; a neighbour is chunk and continuation, so r = 2 m
    num_chunks: int = 32  # l in the paper: the longest sequence in chunks
    k: int = 2  # neighbours per chunk
    rotary_base: float = 10_000.0  # wavelength of the slowest rotary pair, in tokens over 2 pi
    dropout: float = 0.0  # after every attention and feed-forward block, in training only
    learning_rate: float = 2e-4  # at the peak of the schedule; the embedding's is a multiple of it, see `training.py`
    seed: int = 0  # of the initial weights, the order of the batches and dropout

    def __post_init__(self) -> None:
        positive = ("vocab_size", "width", "layers", "heads", "head_width", "encoder_layers", "encoder_width")
        for name in (*positive, "chunk_tokens", "num_chunks", "k"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}", where="RETRO model", remedy="Give at least 1.")
        if self.head_width % 2:
            raise ConfigError(f"head_width is {self.head_width}", where="RETRO model", remedy="Give an even number.")
        if not self.cross_layers or not set(self.cross_layers) <= set(range(1, self.layers + 1)):
            remedy = f"Name at least one layer from 1 to {self.layers}."
            raise ConfigError(f"cross_layers is {self.cross_layers}", where="RETRO model", remedy=remedy)
        if not 0.0 <= self.dropout < 1.0:
            raise ConfigError(f"dropout is {self.dropout}", where="RETRO model", remedy="Give 0 or more, below 1.")

    @property
    def neighbour_tokens(self) -> int:
        """r: the tokens of a neighbour with its continuation."""
        return 2 * self.chunk_tokens

    @property
    def pad_token(self) -> int:
        """The id that means "no token". It is outside of the vocabulary, so it is never the id of a token."""
        return self.vocab_size


# Sizes are counted without embeddings, as in the paper. "170m" is the paper's smallest model (172 M); rotary positions have no
# weights, which leaves 156 M of it.
_SIZES = {
    "tiny": RetroConfig(
        vocab_size=1, width=96, layers=2, heads=3, head_width=32, cross_layers=(2,), encoder_layers=1,
        encoder_width=96, chunk_tokens=16, num_chunks=8, learning_rate=1.5e-3,
    ),
    "2m": RetroConfig(
        vocab_size=1, width=144, layers=6, heads=4, head_width=36, cross_layers=(3, 6), encoder_layers=2,
        encoder_width=144, num_chunks=8, learning_rate=1.5e-3,
    ),
    "20m": RetroConfig(
        vocab_size=1, width=384, layers=8, heads=6, head_width=64, cross_layers=(4, 7), encoder_layers=2,
        encoder_width=384, num_chunks=16, learning_rate=6e-4,
    ),
    "170m": RetroConfig(vocab_size=1),
}  # fmt: skip
SIZES = tuple(_SIZES)


def config_of_size(size: str, vocab_size: int) -> RetroConfig:
    """One of `SIZES`.

    Raises:
        ConfigError: for a size that does not exist.
    """
    if size not in _SIZES:
        raise ConfigError(f"no model size {size!r}", remedy=f"Sizes are {', '.join(SIZES)}.")
    return replace(_SIZES[size], vocab_size=vocab_size)
