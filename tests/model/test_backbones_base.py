"""The backbone registry, the base class of wrapped models, and checkpoint loading."""

import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.testing import assert_close

from art import build_backbone
from art.backbones import Backbone, register_backbone
from art.backbones.base import AdaptedBackbone, Features, load_by_name, read_checkpoint

MEAN, STD = (0.1, 0.2, 0.3), (0.5, 0.25, 2.0)


class SmallBackbone(AdaptedBackbone):
    """A convolution with batch statistics and dropout."""

    def __init__(self, **options):
        model = nn.Sequential(nn.Conv2d(3, 5, 4, 4), nn.BatchNorm2d(5), nn.Dropout(0.5))
        defaults = {"channels": 5, "input_size": 8, "patch_size": 4, "frozen": False}
        super().__init__(model, **{**defaults, "image_mean": MEAN, "image_std": STD, **options})

    def forward(self, video):
        frames = self.normalize(video)
        tokens = self.model(frames.flatten(0, 1)).flatten(2).transpose(1, 2).unflatten(0, frames.shape[:2])
        return Features(tokens, tokens.mean((1, 2)), self.grid)


class SmallModule(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 1)
        self.norm = nn.BatchNorm2d(3)
        self.extra = nn.Linear(3, 1)


# Registry.


def test_invalid_requests():
    with pytest.raises(ValueError, match=r"backbone 'tini' is unknown.*did you mean 'tiny'"):
        build_backbone("tini", num_frames=4)
    with pytest.raises(ValueError, match="num_frames is 0"):
        build_backbone("tiny", num_frames=0)
    with pytest.raises(TypeError, match=r"backbone 'tiny'.*'wide'"):
        build_backbone("tiny", num_frames=4, wide=3)
    with pytest.raises(ValueError, match="'tiny' is already registered"):
        register_backbone("tiny")(lambda **_: None)


@pytest.mark.parametrize(
    ("backbone", "library", "extra"),
    [
        ("clip_vit_b_16", "open_clip", "clip"),
        ("timm_vit", "timm", "timm"),
        ("videomae", "transformers", "transformers"),
        ("vjepa2", "transformers", "transformers"),
        ("dinov3", "transformers", "transformers"),
        ("efficientnet_lite0", "efficientnet_lite_pytorch", "lite"),
    ],
)
def test_missing_library(backbone, library, extra, monkeypatch):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ModuleNotFoundError, match=rf"needs {library}.*pip install 'art-kernels\[{extra}\]'"):
        build_backbone(backbone, num_frames=4)


@pytest.mark.slow
def test_libraries_are_imported_lazily():
    check = (
        "import sys; from art.backbones import backbone_names;"
        "assert {'clip_vit', 'clip_vit_l_14', 'timm_vit', 'videomae', 'vivit', 'timesformer'} <= set(backbone_names());"
        "sys.exit(any(name in sys.modules for name in ('open_clip', 'timm', 'transformers', 'torchvision')))"
    )
    assert subprocess.run([sys.executable, "-c", check]).returncode == 0


@pytest.mark.slow
@pytest.mark.skipif(find_spec("timm") is None, reason="the extra [timm] is not installed")
def test_libraries_can_be_imported_after_a_backbone_of_them_is_built():
    """Next to a torch for CPUs, torchvision's wheel for CUDA cannot be imported, nor can timm."""
    check = """
import contextlib
with contextlib.suppress(RuntimeError):
    import timm  # the first attempt may fail
from art import build_backbone
build_backbone("timm_vit", num_frames=1, model="test_vit", input_size=48)
import timm, torchvision
"""
    result = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_parameters_by_depth_is_optional():
    class Plain(Backbone):
        def forward(self, video):
            raise NotImplementedError

    assert Plain().parameters_by_depth() is None


# AdaptedBackbone.


def test_normalize():
    video = torch.ones(1, 2, 3, 8, 8)
    expected = torch.tensor([0.9 / 0.5, 0.8 / 0.25, 0.7 / 2])[:, None, None].expand(1, 2, 3, 8, 8)
    assert_close(SmallBackbone().normalize(video), expected)
    assert_close(SmallBackbone().normalize((255 * video).to(torch.uint8)), expected)


def test_mean_and_std_are_in_the_state_dict_under_their_original_names():
    other = SmallBackbone(image_mean=(0.5,) * 3, image_std=(0.5,) * 3)
    other.load_state_dict(SmallBackbone().state_dict())
    assert_close(other.image_mean.flatten(), torch.tensor(MEAN))
    assert_close(other.image_std.flatten(), torch.tensor(STD))
    assert {"colour_mean", "colour_std"} < other.state_dict().keys()  # checkpoints of earlier versions have these


def test_former_option_names_are_accepted():
    register_backbone("small_for_aliases")(lambda num_frames, pretrained, **options: SmallBackbone(**options))
    backbone = build_backbone("small_for_aliases", num_frames=1, colour_mean=[0.5] * 3, colour_std=[0.25] * 3)
    assert backbone.image_mean.flatten().tolist() == [0.5] * 3
    assert backbone.image_std.flatten().tolist() == [0.25] * 3


def test_frozen_has_no_gradient_and_fixed_statistics():
    backbone = SmallBackbone(frozen=True).train()
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    video = torch.rand(2, 2, 3, 8, 8)
    tokens = backbone(video).tokens
    assert not tokens.requires_grad
    assert_close(backbone(video).tokens, tokens)
    assert_close(backbone.state_dict(), before)
    assert SmallBackbone().train()(video).tokens.requires_grad


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"input_size": 10}, r"input_size is 10, expected a multiple of the patch size, 4, such as 8 or 12"),
        ({"input_size": 3}, r"input_size is 3.*such as 4 or 8"),
        ({"image_std": (0.5, 0.0, 0.5)}, r"image_std is \[0.5, 0.0, 0.5\], expected three.*above 0"),
        ({"image_mean": (0.5,)}, r"image_mean is \[0.5\], expected three numbers"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        SmallBackbone(**options)


def test_wrong_frame_size():
    with pytest.raises(ValueError, match=r"8×12 pixels.*2×2 patches of 4: expected 8×8.*set input_size"):
        SmallBackbone()(torch.rand(1, 1, 3, 8, 12))


# Checkpoints.


@pytest.fixture
def path(tmp_path):
    return tmp_path / "weights.pth"


def load(module, state, **options):
    return load_by_name(module, state, source="weights.pth", expected="a SmallModule", **options)


@pytest.mark.parametrize("key", [None, "state_dict", "model_state_dict", "model_state", "model"])
def test_read_state_dict_with_and_without_wrapper(path, key):
    state = SmallModule().state_dict()
    torch.save(state if key is None else {"epoch": 3, key: state, "optimizer": {"state": {}}}, path)
    assert_close(read_checkpoint(path), dict(state))
    save_file(state, path.with_suffix(".safetensors"))
    assert_close(read_checkpoint(path.with_suffix(".safetensors")), dict(state))


def test_prefixes_are_removed(path):
    names = ["module.base.conv.weight", "base.conv.bias", "module.norm", "conv.module.base"]
    torch.save({name: torch.zeros(1) for name in names}, path)
    assert list(read_checkpoint(path, prefixes=("module.", "base."))) == [
        "conv.weight", "conv.bias", "norm", "conv.module.base",
    ]  # fmt: skip
    torch.save({"a.w": torch.zeros(1), "w": torch.ones(1)}, path)
    with pytest.raises(ValueError, match=r"weights\.pth contains 'w' twice, with and without a prefix \(a\.\)"):
        read_checkpoint(path, prefixes=("a.",))


def test_files_without_a_state_dict(path, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"pretrained is '.*weights\.pth': no such file"):
        read_checkpoint(path)
    torch.save({"epoch": 3, "net": SmallModule().state_dict()}, path)
    with pytest.raises(ValueError, match=r"a dict with the keys epoch, net; expected a state dict"):
        read_checkpoint(path)
    torch.save([1, 2], path)
    with pytest.raises(ValueError, match=r"weights\.pth contains a list; expected a state dict"):
        read_checkpoint(path)
    for content in (b"", b"some text"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"cannot be read with torch\.load\(weights_only=True\)"):
            read_checkpoint(path)
        (tmp_path / "x.safetensors").write_bytes(content)
        with pytest.raises(ValueError, match=r"x\.safetensors is not a safetensors file"):
            read_checkpoint(tmp_path / "x.safetensors")


class Malicious:
    def __reduce__(self):
        return (print, ("run",))


@pytest.mark.parametrize("saved", [SmallModule(), {"model_state": {}, "extra": Malicious()}], ids=["module", "code"])
def test_no_code_is_unpickled(path, saved, capsys):
    torch.save(saved, path)
    with pytest.raises(ValueError, match=r"could execute arbitrary code; if you trust the file, save its state dict"):
        read_checkpoint(path)
    assert capsys.readouterr().out == ""


def test_load_converts_dtypes():
    module, other = SmallModule(), SmallModule()
    other.norm.running_mean += 1
    assert load(module, other.double().state_dict()) == []
    assert_close(module.state_dict(), other.float().state_dict())


def test_optional_names_keep_their_values_and_are_returned():
    module, other = SmallModule(), SmallModule()
    state = {name: value for name, value in other.state_dict().items() if not name.startswith("extra")}
    del state["norm.num_batches_tracked"]  # always optional
    before = module.extra.weight.clone()
    assert load(module, state, optional=["extra.bias", "extra.weight"]) == ["extra.weight", "extra.bias"]
    assert_close(module.extra.weight, before)
    assert_close(module.conv.weight, other.conv.weight)


def test_all_mismatches_are_in_one_error_and_nothing_is_loaded():
    module, state = SmallModule(), SmallModule().state_dict()
    before = module.norm.weight.clone()
    del state["conv.bias"]
    state["conv.weight"] = torch.zeros(3, 2, 3, 3)
    state["norm.weight"] = torch.full((3,), 7.0)
    state["head.weight"] = torch.zeros(5, 3)
    with pytest.raises(ValueError, match=r"weights\.pth does not match the model") as caught:
        load(module, state)
    assert str(caught.value).splitlines()[1:] == [
        "  1 missing: conv.bias",
        "  1 unexpected: head.weight",
        "  1 with another shape: conv.weight [3, 2, 3, 3], expected [3, 2, 1, 1]",
        "  Expected a SmallModule",
    ]
    assert_close(module.norm.weight, before)


def test_long_lists_are_truncated():
    with pytest.raises(ValueError, match=r"25 unexpected: more\.0, .*more\.19 and 5 more"):
        load(SmallModule(), {**SmallModule().state_dict(), **{f"more.{i}": torch.zeros(1) for i in range(25)}})
