"""The backbone interface and ``tiny``."""

import pytest
import torch
from safetensors.torch import save_file
from torch.testing import assert_close

from art import build_backbone
from art.backbones import register_backbone


def test_tiny_features():
    features = build_backbone("tiny", num_frames=4, width=8)(torch.rand(2, 4, 3, 112, 80))
    assert features.grid == (14, 10)
    assert features.tokens.shape == (2, 4, 140, 48)
    assert_close(features.class_token, torch.nn.functional.layer_norm(features.tokens.mean((1, 2)), (48,)))


def test_tiny_takes_sizes_that_its_strides_do_not_divide():
    features = build_backbone("tiny", num_frames=2, width=8)(torch.rand(1, 2, 3, 101, 75))
    assert features.grid == (13, 10)
    assert features.tokens.shape == (1, 2, 130, 48)


def test_tiny_sees_each_clip_alone_and_the_order_of_its_frames():
    torch.manual_seed(0)
    backbone = build_backbone("tiny", num_frames=4, width=8).eval()
    video = torch.rand(2, 4, 3, 32, 32)
    both = backbone(video).tokens
    assert_close(backbone(video[1:]).tokens, both[1:])
    assert not torch.allclose(backbone(video.flip(1)).tokens.flip(1), both)


def test_tiny_tokens_lie_row_by_row():
    torch.manual_seed(0)
    backbone = build_backbone("tiny", num_frames=1, width=8, depth=[1, 1, 1]).eval()
    video = torch.zeros(1, 1, 3, 160, 160)
    plain = backbone(video).tokens
    video[..., 144:, :16] = 1  # bottom left
    moved = (backbone(video).tokens - plain).norm(dim=-1).reshape(20, 20)
    assert moved[19, 0] > 0
    assert moved[0].max() == 0
    assert moved[:, 19].max() == 0


def test_pretrained_weights_by_path(tmp_path):
    first = build_backbone("tiny", num_frames=2, width=8)
    save_file({k: v.contiguous() for k, v in first.state_dict().items()}, tmp_path / "tiny.safetensors")
    second = build_backbone("tiny", num_frames=2, width=8, pretrained=str(tmp_path / "tiny.safetensors"))
    assert_close(second.stem.weight, first.stem.weight)


def test_bad_requests_are_named():
    with pytest.raises(ValueError, match=r"backbone 'tini' is unknown.*did you mean 'tiny'"):
        build_backbone("tini", num_frames=4)
    with pytest.raises(ValueError, match="num_frames is 0"):
        build_backbone("tiny", num_frames=0)
    with pytest.raises(TypeError, match=r"backbone 'tiny'.*'wide'"):
        build_backbone("tiny", num_frames=4, wide=3)
    with pytest.raises(ValueError, match="'tiny' is registered already"):
        register_backbone("tiny")(lambda **_: None)
