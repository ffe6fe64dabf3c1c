"""Settings for all tests. They reach no model hub: what they need is installed or made by them."""

from __future__ import annotations

import os

# Before any test imports a Hugging Face library, and inherited by the processes that tests start.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
