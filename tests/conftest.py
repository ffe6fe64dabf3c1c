"""Settings for all tests. They reach no model hub: what they need is installed or made by them."""

from __future__ import annotations

import os

import pytest

# Before any test imports a Hugging Face library, and inherited by the processes that tests start.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """How many faults of storage the tests injected, also where other processes ran them."""
    from faulty_storage import SURVIVED

    passed = terminalreporter.stats.get("passed", [])
    counts = [int(value) for report in passed for name, value in report.user_properties if name == SURVIVED]
    if counts:
        terminalreporter.write_line(f"{sum(counts)} {SURVIVED}, in {len(counts)} commands")
