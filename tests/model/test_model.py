"""ARTModel: shapes and gradients of every stage, the objective, saving and loading."""

import pytest
import torch
from torch.testing import assert_close

from art import ARTModel, BackboneClassifier, load_model
from art.data.transforms.sampling import FrameSampling

LABELS = torch.tensor([1, 3])
METHODS = ("index", "optimal")


def test_output_shapes_with_a_grid_that_is_not_square(make_art, video):
    out = make_art(num_tracklets=3)(video, return_maps=True)
    assert out.logits.shape == out.video_logits.shape == (2, 4)
    assert out.class_token.shape == (2, 48)
    assert out.selected.shape == (2, 3)
    assert out.responses.shape == (2, 3, 3, 16)
    assert out.tracklets.shape == (2, 3, 3, 16)
    assert out.aggregated.shape == (2, 3, 16)
    assert out.saliency.shape == (2, 3, 3)
    assert out.maps.shape == (2, 3, 3, 6, 8)
    assert_close(out.maps.sum((-2, -1)), torch.ones(2, 3, 3))
    assert_close(out.saliency.sum(1), torch.ones(2, 3))
    assert_close(out.tracklets, out.responses.transpose(1, 2))
    assert torch.equal(out.order, torch.arange(3).expand(2, 3, 3))


def with_swapped_queries(model):
    """Queries 0 and 1 change places in frame 1: their prompts, which outweigh the rest, are those of each other."""
    with torch.no_grad():
        model.activation.prompts[:, 0], model.activation.prompts[:, 1] = torch.randn(2, 1, 16) * 100
        model.activation.prompts[1] = model.activation.prompts[1].flip(0)
    return model


def test_the_order_tells_what_linking_did(make_art, video):
    by_query, linked = (with_swapped_queries(make_art(linking=method))(video, return_maps=True) for method in METHODS)
    assert linked.order.tolist() == [[[0, 1], [1, 0], [0, 1]]] * 2
    for name in ("responses", "maps"):
        one, other = getattr(by_query, name), getattr(linked, name)
        assert_close(other[:, 1], one[:, 1].flip(1))
        assert_close(other[:, ::2], one[:, ::2])


def test_each_video_is_asked_about_different_classes(make_art, video):
    selected = make_art(num_tracklets=4)(video).selected
    assert selected.sort(dim=1).values.tolist() == [[0, 1, 2, 3]] * 2


def test_every_parameter_gets_a_gradient(make_art, video):
    model = make_art(query_self_attention=True)
    model.loss(model(video), LABELS).total.backward()
    # The key bias shifts all scores of a query alike, so its gradient is zero by construction.
    without = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert without == []


def test_each_stage_passes_gradients_to_the_backbone(make_art, video):
    for weights in ({"weight_video": 1}, {"weight_contextual": 1}, {"weight_mtc": 1}):
        off = dict.fromkeys(("weight_video", "weight_contextual", "weight_mtc", "weight_sema"), 0.0)
        model = make_art(**{**off, **weights})
        model.loss(model(video), LABELS).total.backward()
        assert model.backbone.stem.weight.grad.abs().sum() > 0, weights


@pytest.mark.parametrize("detach, reaches", [(True, False), (False, True)])
def test_bank_losses_train_the_backbone_only_when_asked(make_art, video, detach, reaches):
    off = dict.fromkeys(("weight_video", "weight_contextual", "weight_mtc"), 0.0)
    model = make_art(**off, detach_video=detach)
    model.loss(model(video), LABELS).total.backward()
    assert bool(model.backbone.stem.weight.grad.abs().sum() > 0) is reaches
    assert model.semantics.agent.grad.abs().sum() > 0


def test_total_is_the_weighted_sum_of_the_named_terms(make_art, video):
    model = make_art()
    terms = model.loss(model(video), LABELS)
    named = terms.named()
    assert set(named) == {
        "total", "video", "contextual", "spatial", "temporal", "tracklet", "mtc",
        "video_consistency", "prototype_consistency", "sema",
    }  # fmt: skip
    assert_close(named["mtc"], named["spatial"] + named["temporal"] + named["tracklet"])
    assert_close(named["sema"], named["video_consistency"] + named["prototype_consistency"])
    assert_close(terms.total, named["video"] + named["contextual"] + 5 * named["mtc"] + 5 * named["sema"])


def test_the_contrast_across_the_batch_is_off_until_it_has_a_weight(make_art, video):
    labels = torch.tensor([1, 1])
    without, having = make_art(), make_art(weight_nce=0.5, nce_temperature=0.2)
    output = having(video)
    terms = having.loss(output, labels)
    assert terms.nce > 0
    assert_close(terms.total, without.loss(without(video), labels).total + 0.5 * terms.nce)
    (gradient,) = torch.autograd.grad(terms.nce, output.aggregated)
    assert gradient.isfinite().all() and (gradient != 0).any()


@pytest.mark.parametrize("kind", ["art", "backbone"])
def test_labels_may_be_shares_of_classes(make_art, make_baseline, video, kind):
    model = (make_art if kind == "art" else make_baseline)()
    output = model(video)
    own, other = model.loss(output, torch.tensor([0, 2])), model.loss(output, torch.tensor([3, 1]))
    shares = torch.tensor([[0.8, 0, 0, 0.2], [0, 0.2, 0.8, 0]])
    mixed = model.loss(output, shares).named()
    for name, value in mixed.items():
        assert_close(value, 0.8 * own.named()[name] + 0.2 * other.named()[name])
    assert mixed["video"] != own.video


def test_a_prediction_averages_the_views_that_are_asked_for(make_art, monkeypatch):
    frames = torch.randint(256, (6, 3, 40, 64), dtype=torch.uint8)
    asked = []

    def read(path, num_frames, **options):
        asked.append((path, num_frames, options))
        return frames[: num_frames * options["views"]]

    monkeypatch.setattr("art.data.transforms.shown.read_clip", read)
    model = make_art().train()
    model.sampling = FrameSampling("dense", 4)
    told = dict(model.predict("a.mp4", 4, views=2, crops=3))
    whole = {"start": None, "end": None, "decoder": "pyav"}
    assert asked == [("a.mp4", 3, {"sampling": FrameSampling("dense", 4), "views": 2, **whole})]
    assert model.training
    shown = torch.stack([view[..., left : left + 40] for view in frames.split(3) for left in (0, 12, 24)])
    with torch.no_grad():
        expected = model.eval()(model.centre_crop(shown)).logits.softmax(1).mean(0)
    assert_close(torch.tensor([told[name] for name in model.class_names]), expected)
    model.predict("a.mp4")
    assert asked[-1][2]["views"] == 1
    with pytest.raises(ValueError, match="crops must be 1 or 3, got 2"):
        model.predict("a.mp4", crops=2)


def test_uint8_and_float_videos_agree(make_art):
    video = torch.randint(0, 256, (1, 3, 3, 32, 32), dtype=torch.uint8)
    model = make_art().eval()
    assert_close(model(video).logits, model(video.float() / 255).logits)


def test_a_prediction_does_not_depend_on_the_rest_of_the_batch(make_art, video):
    model = make_art().eval()
    assert_close(model(video).logits[1:], model(video[1:]).logits)


def test_empty_batch(make_art, video):
    out = make_art().eval()(video[:0], return_maps=True)
    assert out.logits.shape == (0, 4)
    assert out.maps.shape == (0, 3, 2, 6, 8)


@pytest.mark.parametrize("kind", ["art", "backbone"])
def test_saved_and_loaded_gives_the_same_bits(make_art, make_baseline, video, tmp_path, kind, monkeypatch):
    model = make_art() if kind == "art" else make_baseline()
    model.loss(model(video), LABELS).total.backward()
    torch.optim.SGD(model.parameters(), 0.1).step()
    model.after_step()
    model.eval().save_pretrained(tmp_path / "saved")

    def no_encoder(*_, **__):
        raise AssertionError("loading a model must not build a text encoder")

    monkeypatch.setattr("art.model.art_model.build_text_encoder", no_encoder)
    loaded = load_model(tmp_path / "saved")
    assert type(loaded) is type(model)
    assert loaded.class_names == model.class_names
    assert loaded.options == model.options
    assert torch.equal(loaded(video).logits, model(video).logits)
    assert sorted(p.name for p in (tmp_path / "saved").iterdir()) == ["config.json", "model.safetensors"]


def test_loading_the_wrong_thing_says_so(make_art, tmp_path):
    with pytest.raises(FileNotFoundError, match="expected a folder written by save_pretrained"):
        ARTModel.from_pretrained(tmp_path)
    make_art().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="holds a model of kind 'art'"):
        BackboneClassifier.from_pretrained(tmp_path)
    config = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(config.replace('"latent_dim": 16', '"latent_dim": 32'))
    with pytest.raises(ValueError, match=r"model\.safetensors does not fit"):
        ARTModel.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(config.replace('"kind": "art"', '"kind": "arts"'))
    with pytest.raises(ValueError, match=r"config\.json: kind 'arts' is unknown; expected one of art, backbone"):
        ARTModel.from_pretrained(tmp_path)


def test_an_interrupted_save_keeps_the_model_before_it(make_art, tmp_path, monkeypatch):
    model = make_art()
    model.save_pretrained(tmp_path)
    before = (tmp_path / "model.safetensors").read_bytes()

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("art.model.pretrained.save_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        model.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


def test_parameter_groups_hold_every_parameter_once(make_art, make_baseline):
    for model in (make_art(), make_baseline()):
        grouped = [p for group in model.parameter_groups().values() for p in group]
        assert len(grouped) == len({id(p) for p in grouped}) == len(list(model.parameters()))


def test_bad_input_is_named(make_art, video):
    with pytest.raises(ValueError, match=r"video has shape \[2, 2, 3, 48, 64\], expected \[B, 3, 3, H, W\]"):
        make_art()(video[:, :2])
    with pytest.raises(TypeError, match=r"dtype torch\.int64, expected uint8, or float"):
        make_art()(video.long())
    with pytest.raises(TypeError, match="unknown option 'latent_dims'; did you mean 'latent_dim'"):
        make_art(latent_dims=3)
    with pytest.raises(ValueError, match="num_tracklets is 5, expected at most the number of classes, 4"):
        make_art(num_tracklets=5)
    with pytest.raises(ValueError, match="latent_dim is 15, expected a multiple of num_heads, 2"):
        make_art(latent_dim=15)
    with pytest.raises(ValueError, match=r"test_crop is 0\.0, expected above 0 and at most 1"):
        make_art(test_crop=0.0)
    with pytest.raises(ValueError, match=r"nce_temperature is 0\.0, expected above 0"):
        make_art(nce_temperature=0.0)
    with pytest.raises(ValueError, match="'walk' more than once"):
        ARTModel(["walk", "walk"])
    with pytest.raises(TypeError, match="single string"):
        ARTModel("walk")


def test_prompts_speak_for_the_classes(make_art):
    named, prompted = make_art(), make_art(prompts=["go", "race", "leap", "wheel"])
    assert not torch.allclose(named.semantics.bank, prompted.semantics.bank)
    assert prompted.class_names == named.class_names
    with pytest.raises(ValueError, match="prompts has 1 texts, expected one for each of the 4 classes"):
        make_art(prompts=["go"])


def test_the_backbone_alone_has_no_maps_to_return(make_baseline, video):
    with pytest.raises(ValueError, match="has no response maps"):
        make_baseline()(video, return_maps=True)
