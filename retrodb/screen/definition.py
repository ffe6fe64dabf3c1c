"""The definition of a tagger, which a snapshot stores with the scores."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import ClassVar


@dataclass(frozen=True)
class TaggerDefinition:
    """Everything that a tagger's scores depend on. Equal definitions give equal scores."""

    kind: ClassVar[str]  # "wordlist", "regex", "hf-model" or "python"

    def to_json(self) -> dict[str, str | int]:
        """The kind and all fields, as a snapshot stores them."""
        return {"kind": self.kind, **asdict(self)}
