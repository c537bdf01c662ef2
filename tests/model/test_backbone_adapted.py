"""What the backbones around models of other libraries share; each library's own is in a file of its own."""

import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from art import build_backbone
from art.backbones.adapted import AdaptedBackbone, is_tag
from art.backbones.interface import Features


class Small(AdaptedBackbone):
    """A convolution with statistics and dropout."""

    def __init__(self, **given):
        model = nn.Sequential(nn.Conv2d(3, 5, 4, 4), nn.BatchNorm2d(5), nn.Dropout(0.5))
        colours = ((0.1, 0.2, 0.3), (0.5, 0.25, 2.0))
        super().__init__(
            model, **{"channels": 5, "input_size": 8, "patch_size": 4, "colours": colours, "frozen": False, **given}
        )

    def forward(self, video):
        frames = self.prepared(video)
        tokens = self.model(frames.flatten(0, 1)).flatten(2).transpose(1, 2).unflatten(0, frames.shape[:2])
        return Features(tokens, tokens.mean((1, 2)), self.grid)


def test_colours_are_normalised_one_by_one():
    video = torch.ones(1, 2, 3, 8, 8)
    expected = torch.tensor([0.9 / 0.5, 0.8 / 0.25, 0.7 / 2])[:, None, None].expand(1, 2, 3, 8, 8)
    assert_close(Small().prepared(video), expected)
    assert_close(Small().prepared((255 * video).to(torch.uint8)), expected)


def test_colours_come_with_the_weights():
    other = Small(colours=((0.5,) * 3, (0.5,) * 3))
    other.load_state_dict(Small().state_dict())
    assert_close(other.colour_mean.flatten(), torch.tensor([0.1, 0.2, 0.3]))
    assert_close(other.colour_std.flatten(), torch.tensor([0.5, 0.25, 2.0]))


def test_frozen_has_no_gradient_and_keeps_its_statistics():
    backbone = Small(frozen=True).train()
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    video = torch.rand(2, 2, 3, 8, 8)
    tokens = backbone(video).tokens
    assert not tokens.requires_grad
    assert_close(backbone(video).tokens, tokens)
    assert_close(backbone.state_dict(), before)
    assert Small().train()(video).tokens.requires_grad


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"input_size": 10}, r"input_size is 10, expected a multiple of the patch size, 4, such as 8 or 12"),
        ({"input_size": 3}, r"input_size is 3.*such as 4 or 8"),
        (
            {"colours": ((0.5,) * 3, (0.5, 0.0, 0.5))},
            r"colour_std is \[0.5, 0.0, 0.5\], expected three.*above 0",
        ),
        ({"colours": ((0.5,), (0.5,) * 3)}, r"colour_mean is \[0.5\], expected three numbers"),
    ],
)
def test_values_out_of_range_are_named(given, told):
    with pytest.raises(ValueError, match=told):
        Small(**given)


def test_frames_of_another_size_are_named():
    with pytest.raises(ValueError, match=r"8×12 pixels.*2×2 patches: expected 8×8.*another input_size"):
        Small()(torch.rand(1, 1, 3, 8, 12))


def test_what_begins_the_weights(tmp_path):
    file = tmp_path / "weights.pt"
    file.touch()
    assert is_tag("openai", ["openai", "laion"], "ViT")
    assert not is_tag(None, ["openai"], "ViT")
    assert not is_tag(str(file), ["openai"], "ViT")
    with pytest.raises(FileNotFoundError, match=r"'opneai': expected the path.*a tag of ViT \(openai, laion\)"):
        is_tag("opneai", ["openai", "laion"], "ViT")


@pytest.mark.parametrize(
    ("backbone", "library", "extra"),
    [
        ("clip_vit_b_16", "open_clip", "clip"),
        ("timm_vit", "timm", "timm"),
        ("videomae", "transformers", "transformers"),
        ("vivit", "transformers", "transformers"),
        ("timesformer", "transformers", "transformers"),
    ],
)
def test_a_missing_library_is_named_with_its_extra(backbone, library, extra, monkeypatch):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ModuleNotFoundError, match=rf"needs {library}.*pip install 'art-kernels\[{extra}\]'"):
        build_backbone(backbone, num_frames=4)


def test_no_library_is_imported_before_it_is_needed():
    check = (
        "import sys; from art.backbones import backbone_names;"
        "assert {'clip_vit', 'clip_vit_l_14', 'timm_vit', 'videomae', 'vivit', 'timesformer'} <= set(backbone_names());"
        "sys.exit(any(name in sys.modules for name in ('open_clip', 'timm', 'transformers', 'torchvision')))"
    )
    assert subprocess.run([sys.executable, "-c", check]).returncode == 0
