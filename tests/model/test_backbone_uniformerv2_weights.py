"""Checkpoints of UniFormerV2 and of CLIP: by name, resized where they may be, and refused where they do not fit."""

from importlib.util import find_spec

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from test_backbone_uniformerv2 import FOR_MOVEMENT, TINY, make_tiny
from torch import nn
from torch.testing import assert_close

from art import build_backbone
from art.backbones.uniformerv2_weights import NormalisedLinear, interpolated, published_state
from art.text.clip import _import_open_clip


@pytest.fixture
def head():
    torch.manual_seed(0)
    return NormalisedLinear(24, 5)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "weights.pth"


def load(path, **options):
    return build_backbone("uniformerv2_b16", num_frames=4, pretrained=str(path), **{**TINY, **options})


def assert_same(found, expected):
    assert_close(dict(found.state_dict()), dict(expected.state_dict()))


# Published checkpoints.


@pytest.mark.parametrize("options", [{}, FOR_MOVEMENT, {"frozen": True}], ids=str)
def test_what_is_saved_under_the_published_names_is_loaded_again(options, path, head):
    backbone = make_tiny(**options)
    state = published_state(backbone, head)
    assert all(name.startswith("backbone.") for name in state)
    torch.save(state, path)
    assert_same(load(path, **options), backbone)
    torch.save({"model_state": {name.removeprefix("backbone."): value for name, value in state.items()}}, path)
    assert_same(load(path, **options), backbone)
    save_file(state, path.with_suffix(".safetensors"))
    assert_same(load(path.with_suffix(".safetensors"), **options), backbone)


def test_the_head_is_new_unless_it_is_kept(path, head):
    torch.save(published_state(make_tiny(), head), path)
    assert type(load(path).video_head(5)) is nn.Linear
    kept = load(path, keep_head=True).video_head(5)
    x = torch.randn(2, 24)
    expected = head(x)
    assert_close(kept(x), expected)
    (path.parent / "labels.json").write_text("[4, 0, 2]")
    for labels in ([4, 0, 2], str(path.parent / "labels.json")):
        kept = load(path, keep_head=True, head_labels=labels).video_head(3)
        assert_close(kept(x), expected[:, [4, 0, 2]])


def test_a_kept_head_without_a_checkpoint_has_the_published_form():
    head = build_backbone("uniformerv2_b16", num_frames=4, **TINY, keep_head=True).video_head(7)
    x = torch.randn(2, 24)
    assert_close(head(x), F.linear(F.layer_norm(x, (24,)), head.weight, head.bias))


def test_a_head_that_does_not_fit(path, head):
    torch.save(published_state(make_tiny(), head), path)
    with pytest.raises(ValueError, match="the kept head has 5 labels, but there are 4 classes; give head_labels"):
        load(path, keep_head=True).video_head(4)
    with pytest.raises(ValueError, match=r"head_labels holds \[5, -1\], expected indices 0 to 4"):
        load(path, keep_head=True, head_labels=[0, 5, -1])
    with pytest.raises(FileNotFoundError):
        load(path, keep_head=True, head_labels=str(path.parent / "nowhere.json"))
    torch.save(published_state(make_tiny()), path)
    with pytest.raises(ValueError, match=r"lacks transformer\.proj\.0\.weight, .*keep_head=False"):
        load(path, keep_head=True)


def test_positions_are_interpolated_to_another_resolution(path):
    backbone = make_tiny()
    torch.save(published_state(backbone), path)
    larger = load(path, input_size=40)
    assert larger(torch.rand(1, 4, 3, 40, 40)).grid == (5, 5)
    assert_close(larger.positional_embedding[0], backbone.positional_embedding[0])
    assert_close(larger.conv1.weight, backbone.conv1.weight)


def test_interpolation_keeps_rows_and_columns():
    rows, columns = torch.meshgrid(torch.arange(12.0), torch.arange(12.0), indexing="ij")
    positions = torch.cat([torch.full((1, 2), 7.0), torch.stack([rows, columns], -1).flatten(0, 1)])
    resized = interpolated(positions, (1 + 6 * 6, 2))
    assert torch.equal(resized[0], positions[0])
    grid = resized[1:].reshape(6, 6, 2)
    assert_close(grid[1:-1, 1:-1, 0], (2 * torch.arange(1.0, 5)[:, None] + 0.5).expand(4, 4), atol=0.1, rtol=0)
    assert_close(grid[..., 1], grid[..., 0].T)
    assert interpolated(positions, positions.shape) is positions


# CLIP.


@pytest.fixture(scope="module")
def clip():
    """A small CLIP of open_clip's, of the sizes of TINY."""
    if find_spec("open_clip") is None:
        pytest.skip("the extra [clip] is not installed")
    torch.manual_seed(0)
    return (
        _import_open_clip()
        .model.CLIP(
            16,
            {"image_size": 24, "layers": 3, "width": 24, "head_width": 8, "patch_size": 8},
            {"context_length": 8, "vocab_size": 50, "width": 16, "heads": 2, "layers": 1},
            quick_gelu=True,
        )
        .eval()
    )


def clips_tokens(clip, video):
    """What the last block of CLIP's image tower says of each frame, before its end."""
    found = []
    hook = clip.visual.transformer.register_forward_hook(lambda *arguments: found.append(arguments[2]))
    clip.visual(((video - 0.45) / 0.225).flatten(0, 1))
    hook.remove()
    return found[0].unflatten(0, video.shape[:2])


@pytest.mark.parametrize("options", [{}, FOR_MOVEMENT], ids=str)
@pytest.mark.parametrize("whole", [True, False])
def test_clip_begins_as_clip_on_each_frame(whole, options, clip, path):
    torch.save((clip if whole else clip.visual).state_dict(), path)
    video = torch.rand(2, 4, 3, 24, 24)
    with torch.no_grad():
        expected = clips_tokens(clip, video)
        tokens, class_token, _ = load(path, **options).eval()(video)
    # The inflated convolution sees the middle one of its three frames: 0 and 2 where every second is left.
    expected = expected[:, ::2].repeat_interleave(2, 1) if options else expected
    assert_close(tokens, expected[:, :, 1:], atol=1e-5, rtol=1e-5)
    # The global query and the gate are zero at first.
    assert_close(class_token, expected[:, :, 0].mean(1) / 2, atol=1e-5, rtol=1e-5)


def test_clip_in_half_precision_is_loaded_in_single(clip, path):
    half = {name: value.half() for name, value in clip.state_dict().items()}
    torch.save(half, path)
    backbone = load(path)
    assert {p.dtype for p in backbone.parameters()} == {torch.float32}
    assert_close(backbone.ln_pre.weight, half["visual.ln_pre.weight"].float())


def test_clip_has_no_head_to_keep(clip, path):
    torch.save(clip.state_dict(), path)
    with pytest.raises(ValueError, match=r"lacks transformer\.proj"):
        load(path, keep_head=True)


# What does not fit.


def failure(path, **options):
    with pytest.raises(ValueError) as error:
        load(path, **options)
    return str(error.value)


def test_missing_and_unexpected_names_and_shapes_stand_in_one_error(path):
    state = published_state(make_tiny())
    del state["backbone.transformer.dec.1.ln_3.bias"]
    state["backbone.stray"] = torch.zeros(1)
    state["backbone.ln_pre.weight"] = torch.zeros(23)
    torch.save(state, path)
    message = failure(path)
    assert "1 missing: transformer.dec.1.ln_3.bias" in message
    assert "1 unexpected: stray" in message
    assert "ln_pre.weight [23], expected [24]" in message


@pytest.mark.parametrize("name", ["transformer.temporal_cls_token", "transformer.balance", "transformer.dpe.1.weight"])
def test_only_an_image_model_may_lack_what_is_for_videos(name, path):
    state = published_state(make_tiny())
    del state[f"backbone.{name}"]
    torch.save(state, path)
    assert f"1 missing: {name}" in failure(path)


def test_the_error_names_the_options_that_fit(path):
    torch.save(published_state(make_tiny(**FOR_MOVEMENT)), path)
    message = failure(path)
    assert "conv1.weight [24, 3, 3, 8, 8], expected [24, 3, 1, 8, 8]" in message
    fits = "width=24, layers=3, patch_size=8, input_size=24, local_mhra=2, temporal_downsample=True"
    assert f"{fits}, as many global_blocks as 2, frozen=False" in message


def test_the_error_names_the_backbone_that_fits(path):
    with torch.device("meta"):
        state = build_backbone("uniformerv2_l14_336", num_frames=4, frozen=True).state_dict()
    torch.save({name: torch.zeros(()).expand(value.shape) for name, value in state.items()}, path)
    with torch.device("meta"):
        message = failure(path, **{"width": 768, "layers": 12, "heads": 12, "patch_size": 16, "input_size": 224})
    assert "What would fit: uniformerv2_l14_336 with local_mhra=0, temporal_downsample=False" in message
    assert "as many global_blocks as 4, frozen=True" in message


def test_another_architecture(path):
    torch.save({"conv1.weight": torch.zeros(64, 3, 7, 7), "layer1.0.conv1.weight": torch.zeros(64, 64, 1, 1)}, path)
    message = failure(path)
    assert "missing: class_embedding, positional_embedding" in message
    assert "1 unexpected: layer1.0.conv1.weight" in message
    assert "a checkpoint of UniFormerV2 or of CLIP's image tower" in message


def test_a_stray_name_of_a_whole_clip_is_no_image_towers(clip, path):
    torch.save({**clip.state_dict(), "decoder.weight": torch.zeros(2)}, path)
    assert "1 unexpected: decoder.weight" in failure(path)


class Stranger:
    def __reduce__(self):
        return (print, ("run",))


def test_nothing_of_a_strangers_is_run(path, capsys):
    torch.save({"model_state": {}, "extra": Stranger()}, path)
    assert "nothing else is unpickled" in failure(path)
    assert capsys.readouterr().out == ""
