"""``uniformerv2_*``: checkpoints of the published models and of CLIP, and their errors."""

from importlib.util import find_spec

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn
from torch.testing import assert_close
from uniformerv2_tiny import SSV2, TINY, make_tiny

from art import build_backbone
from art.backbones.uniformerv2_weights import NormalizedLinear, interpolate_positions, published_state
from art.extras import import_extra


@pytest.fixture
def video():
    return torch.rand(2, 4, 3, 24, 24, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def head():
    torch.manual_seed(0)
    return NormalizedLinear(24, 5)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "weights.pth"


def load(path, **options):
    return build_backbone("uniformerv2_b16", num_frames=4, pretrained=str(path), **{**TINY, **options})


def assert_same_state(found, expected):
    assert_close(dict(found.state_dict()), dict(expected.state_dict()))


@pytest.mark.parametrize("options", [{}, SSV2, {"frozen": True}], ids=str)
def test_published_state_round_trip(options, path, head):
    backbone = make_tiny(**options)
    state = published_state(backbone, head)
    assert all(name.startswith("backbone.") for name in state)
    torch.save(state, path)
    assert_same_state(load(path, **options), backbone)
    torch.save({"model_state": {name.removeprefix("backbone."): value for name, value in state.items()}}, path)
    assert_same_state(load(path, **options), backbone)
    save_file(state, path.with_suffix(".safetensors"))
    assert_same_state(load(path.with_suffix(".safetensors"), **options), backbone)


def test_keep_head(path, head):
    torch.save(published_state(make_tiny(), head), path)
    assert type(load(path).video_head(5)) is nn.Linear
    x = torch.randn(2, 24)
    expected = head(x)
    assert_close(load(path, keep_head=True).video_head(5)(x), expected)
    (path.parent / "labels.json").write_text("[4, 0, 2]")
    for labels in ([4, 0, 2], str(path.parent / "labels.json")):
        selected = load(path, keep_head=True, head_labels=labels).video_head(3)
        assert_close(selected(x), expected[:, [4, 0, 2]])
    fresh = build_backbone("uniformerv2_b16", num_frames=4, **TINY, keep_head=True).video_head(7)
    assert_close(fresh(x), F.linear(F.layer_norm(x, (24,)), fresh.weight, fresh.bias))


def test_keep_head_mismatch(path, head):
    torch.save(published_state(make_tiny(), head), path)
    message = "the checkpoint's head has 5 labels, but there are 4 classes; pass head_labels"
    with pytest.raises(ValueError, match=message):
        load(path, keep_head=True).video_head(4)
    with pytest.raises(ValueError, match=r"head_labels contains \[5, -1\], expected indices 0 to 4"):
        load(path, keep_head=True, head_labels=[0, 5, -1])
    with pytest.raises(FileNotFoundError):
        load(path, keep_head=True, head_labels=str(path.parent / "nowhere.json"))
    torch.save(published_state(make_tiny()), path)
    with pytest.raises(ValueError, match=r"lacks transformer\.proj\.0\.weight, .*keep_head=False"):
        load(path, keep_head=True)


def test_positions_are_interpolated(path):
    backbone = make_tiny()
    torch.save(published_state(backbone), path)
    larger = load(path, input_size=40)
    assert larger(torch.rand(1, 4, 3, 40, 40)).grid == (5, 5)
    assert_close(larger.positional_embedding[0], backbone.positional_embedding[0])
    assert_close(larger.conv1.weight, backbone.conv1.weight)


def test_interpolation_keeps_rows_and_columns():
    rows, columns = torch.meshgrid(torch.arange(12.0), torch.arange(12.0), indexing="ij")
    positions = torch.cat([torch.full((1, 2), 7.0), torch.stack([rows, columns], -1).flatten(0, 1)])
    resized = interpolate_positions(positions, (1 + 6 * 6, 2))
    assert torch.equal(resized[0], positions[0])
    grid = resized[1:].reshape(6, 6, 2)
    assert_close(grid[1:-1, 1:-1, 0], (2 * torch.arange(1.0, 5)[:, None] + 0.5).expand(4, 4), atol=0.1, rtol=0)
    assert_close(grid[..., 1], grid[..., 0].T)
    assert interpolate_positions(positions, positions.shape) is positions


@pytest.fixture(scope="module")
def clip():
    """A small CLIP of open_clip, with the sizes of TINY."""
    if find_spec("open_clip") is None:
        pytest.skip("the extra [clip] is not installed")
    open_clip = import_extra("open_clip", extra="clip", needed_by="these tests")
    torch.manual_seed(0)
    vision = {"image_size": 24, "layers": 3, "width": 24, "head_width": 8, "patch_size": 8}
    text = {"context_length": 8, "vocab_size": 50, "width": 16, "heads": 2, "layers": 1}
    return open_clip.model.CLIP(16, vision, text, quick_gelu=True).eval()


def clip_tokens(clip, video):
    """Return the output of the last block of CLIP's image tower for each frame."""
    found = []
    hook = clip.visual.transformer.register_forward_hook(lambda *arguments: found.append(arguments[2]))
    clip.visual(((video - 0.45) / 0.225).flatten(0, 1))
    hook.remove()
    return found[0].unflatten(0, video.shape[:2])


@pytest.mark.parametrize("options", [{}, SSV2], ids=str)
@pytest.mark.parametrize("whole", [True, False])
def test_clip_weights_reproduce_clip_on_each_frame(whole, options, clip, path):
    torch.save((clip if whole else clip.visual).state_dict(), path)
    video = torch.rand(2, 4, 3, 24, 24)
    with torch.no_grad():
        expected = clip_tokens(clip, video)
        tokens, class_token, _ = load(path, **options).eval()(video)
    # The inflated convolution reads the middle of its three frames: frames 0 and 2 with a stride of 2.
    expected = expected[:, ::2].repeat_interleave(2, 1) if options else expected
    assert_close(tokens, expected[:, :, 1:], atol=1e-5, rtol=1e-5)
    # The global query and the gate are zero initially.
    assert_close(class_token, expected[:, :, 0].mean(1) / 2, atol=1e-5, rtol=1e-5)


def test_clip_in_half_precision_is_loaded_in_float32(clip, path):
    half = {name: value.half() for name, value in clip.state_dict().items()}
    torch.save(half, path)
    backbone = load(path)
    assert {p.dtype for p in backbone.parameters()} == {torch.float32}
    assert_close(backbone.ln_pre.weight, half["visual.ln_pre.weight"].float())


def test_errors_of_clip_checkpoints(clip, path):
    torch.save(clip.state_dict(), path)
    with pytest.raises(ValueError, match=r"lacks transformer\.proj"):
        load(path, keep_head=True)
    torch.save({**clip.state_dict(), "decoder.weight": torch.zeros(2)}, path)
    with pytest.raises(ValueError, match=r"1 unexpected: decoder\.weight"):
        load(path)


VIDEO_PARAMETERS = ["transformer.temporal_cls_token", "transformer.balance", "transformer.dpe.1.weight"]
OTHER = {"conv1.weight": torch.zeros(64, 3, 7, 7), "layer1.0.conv1.weight": torch.zeros(64, 64, 1, 1)}


@pytest.mark.parametrize(
    ("options", "removed", "added", "messages"),
    [
        (
            {},
            ["transformer.dec.1.ln_3.bias"],
            {"stray": torch.zeros(1), "ln_pre.weight": torch.zeros(23)},
            ["1 missing: transformer.dec.1.ln_3.bias", "1 unexpected: stray", "ln_pre.weight [23], expected [24]"],
        ),
        # Only a model of images may lack the parameters of the video layers.
        *(({}, [name], {}, [f"1 missing: {name}"]) for name in VIDEO_PARAMETERS),
        (
            SSV2,
            [],
            {},
            [
                "conv1.weight [24, 3, 3, 8, 8], expected [24, 3, 1, 8, 8]",
                "width=24, layers=3, patch_size=8, input_size=24, local_mhra=2, temporal_downsample=True, "
                "2 global_blocks, frozen=False",
            ],
        ),
        (
            None,
            [],
            OTHER,
            [
                "missing: class_embedding, positional_embedding",
                "1 unexpected: layer1.0.conv1.weight",
                "a checkpoint of UniFormerV2 or of CLIP's image tower",
            ],
        ),
    ],
    ids=["three", *VIDEO_PARAMETERS, "options", "architecture"],
)
def test_mismatches_are_in_one_error(options, removed, added, messages, path):
    state = {} if options is None else published_state(make_tiny(**options))
    for name in removed:
        del state[f"backbone.{name}"]
    torch.save({**state, **{f"backbone.{name}": value for name, value in added.items()}}, path)
    with pytest.raises(ValueError) as error:
        load(path)
    assert all(message in str(error.value) for message in messages)


def test_error_names_the_matching_backbone(path):
    with torch.device("meta"):
        state = build_backbone("uniformerv2_l14_336", num_frames=4, frozen=True).state_dict()
    torch.save({name: torch.zeros(()).expand(value.shape) for name, value in state.items()}, path)
    message = "Expected uniformerv2_l14_336 with local_mhra=0, temporal_downsample=False.*4 global_blocks, frozen=True"
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        build_backbone("uniformerv2_b16", num_frames=4, pretrained=str(path))
