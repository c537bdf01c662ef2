"""``timm_vit`` beside timm itself, with small models and random weights."""

from importlib.util import find_spec

import pytest
import torch
from safetensors.torch import save_file
from torch.testing import assert_close

from art import ARTModel, build_backbone
from art.extras import import_extra

if find_spec("timm") is None:
    pytest.skip("the extra [timm] is not installed", allow_module_level=True)
timm = import_extra("timm", extra="timm", needed_by="these tests")

# 64 channels, patches of 16 pixels: with a class token, and with a register and the mean of the patches instead.
WITH_CLASS, WITH_MEAN = "test_vit", "test_vit2"


def make(model=WITH_CLASS, **given):
    torch.manual_seed(0)
    return build_backbone("timm_vit", num_frames=3, model=model, input_size=48, **given).eval()


@pytest.fixture
def video():
    return torch.rand(2, 3, 3, 48, 48, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("model", [WITH_CLASS, WITH_MEAN, "test_vit3", "test_vit4"])
def test_features_are_those_of_timm(model, video):
    backbone = make(model)
    theirs = timm.create_model(model, img_size=48, num_classes=0).eval()
    theirs.load_state_dict(backbone.model.state_dict())
    frames = (video.flatten(0, 1) - 0.5) / 0.5
    with torch.no_grad():
        tokens, class_token, grid = backbone(video)
        expected = theirs.forward_features(frames)[:, theirs.num_prefix_tokens :]
        assert_close(class_token, theirs(frames).unflatten(0, (2, 3)).mean(1))
    assert grid == (3, 3)
    assert_close(tokens, expected.unflatten(0, (2, 3)))
    assert backbone.channels == class_token.shape[1] == tokens.shape[3]


def test_tokens_lie_row_by_row(video):
    backbone = make()
    changed = video.clone()
    changed[0, 1, :, 16:32, :16] = 0  # the second row's first patch
    with torch.no_grad():
        moved = (backbone(changed).tokens - backbone(video).tokens).norm(dim=-1)
    assert moved[0, 1].argmax() == 3
    assert moved[1].max() == moved[0, ::2].max() == 0


def test_a_local_file_with_a_classifier_is_loaded(tmp_path):
    torch.manual_seed(1)
    theirs = timm.create_model(WITH_CLASS, img_size=48, num_classes=7)
    save_file(theirs.state_dict(), tmp_path / "weights.safetensors")
    backbone = make(pretrained=str(tmp_path / "weights.safetensors"))
    assert_close(backbone.model.state_dict(), {n: v for n, v in theirs.state_dict().items() if "head." not in n})


def test_a_tag_is_loaded_by_timm(monkeypatch):
    """Nothing is downloaded: the weights that the tag stands for are given."""
    theirs = timm.create_model(WITH_CLASS, img_size=48, num_classes=1000)
    asked = []
    given = lambda name, *_, **__: asked.append(name) or theirs.state_dict()  # noqa: E731
    monkeypatch.setattr(timm.models._builder, "load_state_dict_from_hf", given)
    backbone = make(pretrained="r160_in1k")
    assert asked == ["timm/test_vit.r160_in1k"]
    assert_close(backbone.model.state_dict(), {n: v for n, v in theirs.state_dict().items() if "head." not in n})
    assert_close(backbone.colour_mean.flatten(), torch.full((3,), 0.5))


def test_positions_are_interpolated_as_timm_does(tmp_path):
    from timm.layers import resample_abs_pos_embed

    theirs = timm.create_model(WITH_CLASS, img_size=80)
    torch.save(theirs.state_dict(), tmp_path / "weights.pt")
    backbone = make(pretrained=str(tmp_path / "weights.pt"))
    assert_close(backbone.model.pos_embed.data, resample_abs_pos_embed(theirs.pos_embed.data, [3, 3]))


def test_the_file_of_another_model_is_an_error(tmp_path):
    torch.save(timm.create_model(WITH_MEAN, img_size=48).state_dict(), tmp_path / "weights.pt")
    with pytest.raises(
        ValueError,
        match=r"does not fit:\n.*missing: cls_token.*\n.*unexpected: reg_token.*\n.*What would fit: .*timm's test_vit",
    ):
        make(pretrained=str(tmp_path / "weights.pt"))


@pytest.mark.parametrize(
    ("model", "told"),
    [
        ("vit_base_patch16_225", r"not one of timm's; did you mean 'vit_base_patch16_224'"),
        ("resnet18", r"'resnet18' has no patch tokens of one grid; expected.*'vit_base_patch16_224'"),
        ("swin_tiny_patch4_window7_224", "has no patch tokens of one grid"),
    ],
)
def test_models_that_do_not_fit_are_named(model, told):
    with pytest.raises(ValueError, match=told):
        make(model)


def test_requests_that_do_not_fit_are_named():
    with pytest.raises(FileNotFoundError, match=r"'nowhere.pt': expected the path.*a tag of test_vit \(r160_in1k\)"):
        make(pretrained="nowhere.pt")
    with pytest.raises(ValueError, match="input_size is 50, expected a multiple of the patch size, 16"):
        build_backbone("timm_vit", num_frames=1, model=WITH_CLASS, input_size=50)
    with pytest.raises(TypeError, match="dropp"):
        make(dropp=0.1)


def test_it_compiles_without_a_graph_break(video):
    backbone = make()
    with torch.no_grad():
        assert_close(torch.compile(backbone, fullgraph=True, backend="eager")(video), backbone(video))


def test_art_on_it_learns_is_saved_and_loaded(tmp_path, video):
    options = {"backbone_options": {"model": WITH_CLASS, "input_size": 48, "drop_path": 0.1}, "latent_dim": 16}
    model = ARTModel(["walk", "run", "jump"], "timm_vit", 3, num_heads=2, **options)
    model.loss(model(video), torch.tensor([0, 2])).total.backward()
    assert model.backbone.model.patch_embed.proj.weight.grad.abs().sum() > 0
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        assert_close(ARTModel.from_pretrained(tmp_path)(video).logits, model.eval()(video).logits)
