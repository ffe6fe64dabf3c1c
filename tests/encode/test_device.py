"""The choice of device and number format."""

from __future__ import annotations

import pytest
import torch

from retrodb.encode.device import choose_compute, has_fast_bfloat16, measure_matrix_rate
from retrodb.encode.threads import thread_environment
from retrodb.errors import UsageError


def test_cpu_computes_in_bfloat16_only_where_it_multiplies_it(tmp_path):
    cpuinfo = tmp_path / "cpuinfo"
    for flags, expected in [("fpu avx2", False), ("fpu avx512f avx512_bf16", True), ("amx_bf16 amx_tile", True)]:
        cpuinfo.write_text(f"processor : 0\nflags\t\t: {flags}\n")
        assert has_fast_bfloat16(cpuinfo) is expected
    assert not has_fast_bfloat16(tmp_path / "missing")


def test_cpu_is_chosen_and_can_be_set_up():
    chosen = choose_compute("cpu", "float32", batch_tokens=100, threads=2)
    assert (chosen.device, chosen.dtype, chosen.batch_tokens, chosen.threads) == ("cpu", "float32", 100, 2)
    assert not chosen.is_cuda
    assert choose_compute("cpu").dtype == ("bfloat16" if has_fast_bfloat16() else "float32")
    assert choose_compute("cpu").batch_tokens > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "tpu"}, "unknown device 'tpu'"),
        ({"device": "cuda:x"}, "unknown device"),
        ({"device": "cuda:77"}, "no device 'cuda:77'"),
        ({"device": "cpu", "dtype": "float8"}, "unknown compute dtype"),
        ({"device": "cpu", "batch_tokens": 0}, "is invalid"),
        ({"device": "cpu", "threads": 0}, "is invalid"),
    ],
)
def test_unavailable_device_is_refused(options, message):
    with pytest.raises(UsageError, match=message):
        choose_compute(**options)


def test_matrix_rate_is_measured_and_leaves_the_threads_alone():
    before = torch.get_num_threads()
    assert measure_matrix_rate(choose_compute("cpu", "float32", threads=1), size=64, repeats=1) > 0
    assert torch.get_num_threads() == before


def test_environment_makes_waiting_threads_sleep():
    assert thread_environment()["OMP_WAIT_POLICY"] == "passive"
