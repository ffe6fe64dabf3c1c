"""Whether this machine may have a GPU, asked without PyTorch, which takes a second to load."""

from __future__ import annotations

import os
import sys

_DEVICES = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")  # of NVIDIA, of either under WSL, of AMD


def may_have_gpu() -> bool:
    """False where the system has no device of a GPU, so that PyTorch would find none either."""
    return sys.platform != "linux" or any(map(os.path.exists, _DEVICES))
