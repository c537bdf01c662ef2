"""``tea50``: agreement with the published implementation, checkpoints, options, and invalid input."""

import copy

import pytest
import torch
from golden import golden_outputs, golden_shapes, golden_video, golden_weights
from safetensors.torch import save_file
from torch import nn
from torch.testing import assert_close

from art import ARTModel, build_backbone
from art.backbones.tea import TEA50, MotionExcitation, TEABlock, TemporalConvolution, temporal_names

CASE = "tea50_8f"
IMAGENET_MEAN, IMAGENET_STD = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[..., None, None]


@pytest.fixture(scope="module")
def weights():
    return golden_weights(golden_shapes(CASE), CASE)


@pytest.fixture(scope="module")
def loaded(weights):
    """The backbone with the seeded weights, in eval mode; do not modify."""
    backbone = build_backbone("tea50", num_frames=8)
    backbone.load_state_dict({name: value for name, value in weights.items() if not name.startswith("fc.")})
    return backbone.eval()


@pytest.fixture
def backbone(loaded):
    """A copy for one test, for two frames."""
    backbone = copy.deepcopy(loaded)
    backbone.num_frames = 2
    return backbone


@pytest.fixture
def video():
    return torch.rand(2, 2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def published(shapes=None, prefix=""):
    """A checkpoint with the published names; every element of the i-th tensor is i/1000."""
    shapes = golden_shapes(CASE) if shapes is None else shapes
    return {f"{prefix}{name}": torch.tensor(i / 1000).expand(shape) for i, (name, shape) in enumerate(shapes.items())}


def imagenet_checkpoint():
    """A checkpoint without the temporal parameters."""
    return {name: value for name, value in published().items() if ".me." not in name and ".shifts." not in name}


def build_from(tmp_path, state, **options):
    torch.save(state, tmp_path / "weights.pth")
    return build_backbone("tea50", num_frames=2, pretrained=str(tmp_path / "weights.pth"), **options)


# The published model.


def test_outputs_match_the_published_implementation(loaded, weights):
    own = {name: list(value.shape) for name, value in loaded.state_dict().items()}
    assert own == {name: shape for name, shape in golden_shapes(CASE).items() if not name.startswith("fc.")}
    expected = golden_outputs(CASE)
    # The published network takes normalized colors.
    frames = golden_video((8, 3, 112, 112), CASE) * IMAGENET_STD + IMAGENET_MEAN
    with torch.no_grad():
        tokens, class_token, grid = loaded(frames[None])
    assert grid == (4, 4)
    features = tokens[0].transpose(1, 2).unflatten(2, grid)
    logits = tokens[0].mean(1) @ weights["fc.weight"].T + weights["fc.bias"]
    assert_close(features[:, ::31], expected["features"], atol=2e-4, rtol=0)
    assert_close(logits[:, ::7], expected["logits"], atol=2e-4, rtol=0)
    assert_close(class_token, tokens.mean((1, 2)))


def test_temporal_convolutions_are_initialized_as_published():
    for block in (module for module in TEA50(num_frames=8).modules() if isinstance(module, TEABlock)):
        *joined, last = (shift.conv.weight[:, 0] for shift in block.shifts)
        half = len(last) // 2
        assert all(torch.equal(weight, torch.tensor([0.0, 1, 0]).expand(len(last), 3)) for weight in joined)
        assert torch.equal(last[:half], torch.tensor([0.0, 0, 1]).expand(half, 3))
        assert torch.equal(last[half:], torch.tensor([1.0, 0, 0]).expand(half, 3))


def test_shift_reads_adjacent_frames_of_the_same_clip():
    clips = torch.rand(2, 3, 4, 5, 6)
    shifted = TemporalConvolution(4, shifts=True)(clips.flatten(0, 1), 3).unflatten(0, (2, 3))
    padding = torch.zeros(2, 1, 2, 5, 6)
    assert_close(shifted[:, :, :2], torch.cat([clips[:, 1:, :2], padding], dim=1))
    assert_close(shifted[:, :, 2:], torch.cat([padding, clips[:, :-1, 2:]], dim=1))
    assert_close(TemporalConvolution(4, shifts=False)(clips.flatten(0, 1), 3), clips.flatten(0, 1))


def test_motion_excitation_is_the_mean_change_to_the_next_frame():
    torch.manual_seed(0)
    excite = MotionExcitation(32).double().eval()
    clips = torch.randn(2, 3, 32, 5, 6, dtype=torch.float64)
    expected = torch.empty_like(clips)
    for b in range(2):
        for t in range(3):
            change = torch.zeros(1, 2, 1, 1, dtype=torch.float64)
            if t < 2:
                current, following = (excite.bn1(excite.conv1(clips[b, i : i + 1])) for i in (t, t + 1))
                change = (excite.conv2(following) - current).mean((2, 3), keepdim=True)
            expected[b, t] = clips[b, t] * (0.5 + excite.bn3(excite.conv3(change)).sigmoid())[0]
    assert_close(excite(clips.flatten(0, 1), 3), expected.flatten(0, 1))


# The interface.


def test_features_for_any_number_of_frames_and_frame_size(loaded):
    assert (loaded.channels, loaded.input_size) == (2048, 224)
    for num_frames, height, width, grid in ((1, 32, 32, (1, 1)), (5, 33, 70, (2, 3)), (16, 32, 64, (1, 2))):
        backbone = copy.copy(loaded)
        backbone.num_frames = num_frames
        with torch.no_grad():
            features = backbone(torch.rand(2, num_frames, 3, height, width))
        assert features.grid == grid
        assert features.tokens.shape == (2, num_frames, grid[0] * grid[1], 2048)
        assert features.class_token.shape == (2, 2048)


def test_clips_are_independent_frame_order_matters_and_tokens_are_in_row_major_order(backbone, video):
    maps = []
    backbone.layer4[-1].register_forward_hook(lambda module, inputs, output: maps.append(output))
    video = torch.cat([video, video[..., :32]], -1)
    with torch.no_grad():
        features, one, reversed_ = (backbone(clips) for clips in (video, video[1:], video.flip(1)))
    assert_close(one.tokens, features.tokens[1:], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(reversed_.tokens.flip(1), features.tokens, atol=1e-3)
    assert features.grid == (2, 3)
    assert torch.equal(features.tokens, maps[0].unflatten(0, (2, 2)).flatten(3).transpose(2, 3))


@pytest.mark.slow
def test_compiles_without_graph_breaks(backbone, video):
    for stage in (backbone.layer1, backbone.layer2, backbone.layer3, backbone.layer4):
        del stage[2:]  # further blocks only differ in their weights, and take time to trace
    compiled = torch.compile(backbone, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        for ours, eager in zip(compiled(video)[:2], backbone(video)[:2], strict=True):
            assert_close(ours, eager, atol=1e-5, rtol=1e-5)


def test_art_forward_and_backward(video):
    torch.manual_seed(0)
    model = ARTModel(["walk", "jump", "kick"], backbone="tea50", num_frames=2, latent_dim=16, num_heads=2)
    out = model(video, return_maps=True)
    assert out.class_token.shape == (2, 2048)
    assert out.maps.shape == (2, 2, 2, 2, 2)
    model.loss(out, torch.tensor([0, 2])).total.backward()
    without = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert without == []


# Checkpoints.


@pytest.mark.slow
@pytest.mark.parametrize("prefix", ["", "module.", "base_model.", "module.base_model."])
def test_published_checkpoint_without_its_classifier(tmp_path, prefix):
    state = published(prefix=prefix)
    state["module.new_fc.weight"], state["module.new_fc.bias"] = torch.zeros(174, 2048), torch.zeros(174)
    backbone = build_from(tmp_path, {"epoch": 50, "arch": "tea50", "state_dict": state, "best_prec1": 48.9})
    assert backbone.randomly_initialized == []
    for name, value in backbone.state_dict().items():
        assert_close(value, state[prefix + name].to(value.dtype), msg=name)


@pytest.mark.slow
def test_own_state_dict_loads_from_safetensors(tmp_path, loaded):
    assert loaded.randomly_initialized == list(loaded.state_dict()), "without a checkpoint"
    save_file({name: value.contiguous() for name, value in loaded.state_dict().items()}, tmp_path / "tea.safetensors")
    backbone = build_backbone("tea50", num_frames=8, pretrained=str(tmp_path / "tea.safetensors"))
    assert backbone.randomly_initialized == []
    assert_close(backbone.state_dict(), loaded.state_dict())


def test_imagenet_checkpoint_keeps_the_initial_temporal_parameters(tmp_path):
    state = imagenet_checkpoint()
    torch.manual_seed(0)
    backbone = build_from(tmp_path, {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")})
    torch.manual_seed(0)
    fresh = TEA50(num_frames=2).state_dict()
    assert backbone.randomly_initialized == temporal_names(backbone)
    with pytest.warns(DeprecationWarning, match="initialised is now randomly_initialized"):
        assert backbone.initialised == backbone.randomly_initialized
    assert len(backbone.randomly_initialized) == 16 * (13 + 4)
    for name, value in backbone.state_dict().items():
        expected = state[name] if name in state and not name.endswith("num_batches_tracked") else fresh[name]
        assert_close(value, expected, msg=name)


def test_incomplete_and_foreign_checkpoints(tmp_path):
    state = published()
    del state["layer3.4.me.conv2.weight"], state["layer1.0.shifts.2.conv.weight"]
    message = r"2 missing: layer1\.0\.shifts\.2\.conv\.weight, layer3\.4\.me\.conv2\.weight"
    with pytest.raises(ValueError, match=message):
        build_from(tmp_path, state)
    resnet = {"conv1.weight": torch.zeros(64, 3, 7, 7), "layer1.0.conv2.weight": torch.zeros(64, 64, 3, 3)}
    with pytest.raises(ValueError, match=r"(?s)missing: bn1\.weight.*unexpected: layer1\.0\.conv2.*Expected .*res2net"):
        build_from(tmp_path, resnet)


def test_mismatches_are_in_one_error(tmp_path):
    state = imagenet_checkpoint()
    del state["layer4.2.bn3.bias"]
    state["layer1.0.convs.0.weight"] = torch.zeros(14, 14, 3, 3)
    state["layer1.0.convs.3.weight"] = torch.zeros(14, 14, 3, 3)
    with pytest.raises(ValueError, match=r"weights\.pth does not match the model") as caught:
        build_from(tmp_path, state)
    lines = str(caught.value).splitlines()[1:]
    assert lines[:3] == [
        "  1 missing: layer4.2.bn3.bias",
        "  1 unexpected: layer1.0.convs.3.weight",
        "  1 with another shape: layer1.0.convs.0.weight [14, 14, 3, 3], expected [26, 26, 3, 3]",
    ]
    assert lines[3].startswith("  Expected a checkpoint of TEA on Res2Net-50 26w4s")


# Training.


def test_frozen_batch_norm_keeps_statistics_and_affine_parameters(tmp_path, video):
    backbone = build_from(tmp_path, imagenet_checkpoint(), frozen_batch_norm=True).train()
    norms = [module for module in backbone.modules() if isinstance(module, nn.BatchNorm2d)]
    before = {name: value.clone() for name, value in backbone.named_buffers()}
    backbone(video).class_token.sum().backward()
    assert len(norms) == 1 + 16 * (2 + 2 + 3) + 4
    assert not any(norm.training for norm in norms)
    assert_close(dict(backbone.named_buffers()), before)
    frozen = {name for name, p in backbone.named_parameters() if not p.requires_grad}
    assert frozen == {name for name, p in backbone.named_parameters() if "bn" in name or "downsample.1" in name}
    assert all(p.grad is not None for p in backbone.parameters() if p.requires_grad)


@pytest.mark.slow
def test_gradient_checkpointing_keeps_gradients_and_statistics(backbone, video):
    before = backbone.layer4[2].me.bn3.running_mean.clone()
    other = copy.deepcopy(backbone)
    other.gradient_checkpointing = True
    saved = []
    for each in (backbone.train(), other.train()):
        with torch.autograd.graph.saved_tensors_hooks(lambda x: (saved[-1].append(x.numel()), x)[1], lambda x: x):
            saved.append([])
            tokens = each(video).tokens
        tokens.square().mean().backward()
    assert sum(saved[1]) < sum(saved[0]) / 2
    assert_close([p.grad for p in other.parameters()], [p.grad for p in backbone.parameters()])
    assert_close(other.state_dict(), backbone.state_dict())
    norms = [module for module in other.modules() if isinstance(module, nn.BatchNorm2d)]
    assert all(norm.momentum == 0.1 and norm.num_batches_tracked == 1 for norm in norms)
    assert not torch.equal(backbone.layer4[2].me.bn3.running_mean, before), "batch norm is not frozen by default"
    assert all(p.requires_grad for p in backbone.parameters())


# Invalid input.


def test_invalid_videos(loaded):
    with pytest.raises(ValueError, match=r"4 frames per clip .*expected 8.*num_frames=4"):
        loaded(torch.rand(1, 4, 3, 32, 32))
    with pytest.raises(ValueError, match=r"frames of 31×40 pixels, expected at least 32×32.*enlarge the frames"):
        loaded(torch.rand(1, 8, 3, 31, 40))
    with pytest.raises(ValueError, match=r"expected \[B, T, 3, H, W\]"):
        loaded(torch.rand(8, 3, 32, 32))
    with pytest.raises(TypeError, match="expected uint8, or float"):
        loaded(torch.zeros(1, 8, 3, 32, 32, dtype=torch.int64))
