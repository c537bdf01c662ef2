"""Kernel launches: alignment, chunk widths, configuration rows, and the autotuning switch."""

import pytest
import torch

import art_kernels
from art_kernels._core import launch
from art_kernels._core.launch import ConfigRow, DeviceSpec, LaunchConfig


def test_alignment_is_the_largest_power_of_two_that_divides_every_row_stride():
    assert launch.alignment(torch.empty(3, 5, 16)) == 4
    assert launch.alignment(torch.empty(3, 5, 16).half(), None) == 8
    assert launch.alignment(torch.empty(3, 5, 16), torch.empty(4, 6)) == 2
    assert launch.alignment(torch.empty(3, 7)) == 1


def test_chunks_waste_at_most_an_eighth_of_the_channels():
    assert [launch.chunk_width(channels, 128) for channels in (96, 256, 1000, 40)] == [32, 128, 128, 32]
    assert launch.chunk_width(256, 64) == 64
    config = LaunchConfig(16, 32, 64, 4, channel_splits=4)
    assert config.chunks(300) == 8 and config.options() == (4, 1, None)


def test_the_first_matching_row_is_used():
    rows = [ConfigRow(128, 32, 64, 4), ConfigRow(256, 16, 64, 4, min_shared_kib=200), ConfigRow(None, 16, 32, 8)]
    small, large = DeviceSpec("nvidia", 99 << 10), DeviceSpec("nvidia", 227 << 10)
    assert launch.find_row(rows, 128, small) is rows[0]
    assert launch.find_row(rows, 200, large) is rows[1]
    assert launch.find_row(rows, 200, small) is launch.find_row(rows, 1000, large) is rows[2]


def test_contiguous_last_dim_copies_only_if_necessary():
    rows = torch.empty(4, 6)
    assert launch.contiguous_last_dim(rows[::2]).data_ptr() == rows.data_ptr()
    assert launch.contiguous_last_dim(rows.mT).stride(-1) == 1
    assert launch.contiguous_last_dim(None) is None


def test_float32_products_use_tf32_only_if_enabled():
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    try:
        for value, expected in (("tf32", "tf32"), ("ieee", "ieee")):
            matmul.fp32_precision = value
            assert launch.dot_precision(torch.float32) == expected
            assert launch.dot_precision(torch.bfloat16) == "ieee"
    finally:
        matmul.fp32_precision = before


@pytest.fixture
def environment(monkeypatch):
    """Set ART_KERNELS_AUTOTUNE, which is read once per process."""

    def set_value(value):
        launch._autotune_default.cache_clear()
        monkeypatch.setenv("ART_KERNELS_AUTOTUNE", value)

    yield set_value
    launch._autotune_default.cache_clear()


def test_autotuning_switch(environment):
    environment("")
    assert not launch.autotune_enabled()
    environment("1")
    assert launch.autotune_enabled()
    with art_kernels.autotune(False):
        assert not launch.autotune_enabled()
        with art_kernels.autotune():
            assert launch.autotune_enabled()
    with pytest.raises(KeyError), art_kernels.autotune(False):
        raise KeyError
    assert launch.autotune_enabled()
    environment("yes")
    with pytest.raises(ValueError, match="ART_KERNELS_AUTOTUNE=yes is invalid, expected 1"):
        launch.autotune_enabled()
    with (
        pytest.raises(TypeError, match="enabled is '0' of type str, expected True"),
        art_kernels.autotune("0"),
    ):
        pass


def test_autotune_blocks_may_overlap():
    first, second = art_kernels.autotune(), art_kernels.autotune(False)
    first.__enter__(), second.__enter__()
    first.__exit__(None, None, None)
    assert not launch.autotune_enabled()
    second.__exit__(None, None, None)
    assert not launch.autotune_enabled()


def test_candidates_are_passed_to_triton(monkeypatch):
    triton = pytest.importorskip("triton")

    class Kernel:
        arg_names = ("p_x", "M", "N", "C", "BLOCK_N", "KEEP_IN_REGS")
        constexprs = (3, 4, 5)

    tuned = {}
    monkeypatch.setattr(triton, "autotune", lambda configs, key, **options: lambda kernel: tuned.update(
        configs=configs, key=key, **options
    ))  # fmt: skip
    constants = {"C": 64, "BLOCK_N": 32, "KEEP_IN_REGS": True}
    candidate = LaunchConfig(16, 64, 64, 8, 2, False, maxnreg=255)
    _, fixed = launch._autotuned(launch.KernelLaunch(Kernel(), (1,), {}, constants, 4, 1, None, (candidate,)))
    assert fixed == {"C": 64} and tuned["key"] == ["M", "N", "C"] and tuned["cache_results"]
    found = [(config.kwargs, config.num_warps, config.num_stages, config.maxnreg) for config in tuned["configs"]]
    assert found == [
        ({"BLOCK_N": 32, "KEEP_IN_REGS": True}, 4, 1, None),
        ({"BLOCK_N": 64, "KEEP_IN_REGS": False}, 8, 2, 255),
    ]
