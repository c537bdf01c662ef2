"""`art.tools.bank`: the semantics bank before and after fine-tuning as numbers, figures and files."""

import dataclasses
import json
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from matplotlib.collections import PathCollection

from art import load_model
from art.cli import main
from art.text import build_text_encoder
from art.tools import bank as bank_module
from art.tools.bank import Embedding, analyze_bank, embed, embedding_figure, prompts_figure, similarity_figure

needs_embed = pytest.mark.skipif(find_spec("sklearn") is None, reason="the extra [embed] is not installed")


@pytest.fixture
def model(make_model):
    prompts = [f"to {name}" for name in make_model().class_names]
    made = make_model(prompts=prompts, templates=["{label}", "a video of {label}", "someone does {label}"])
    made.semantics.bank[1, 2] += 0.3 * torch.randn(256)  # one text of "jump"
    return made


@pytest.fixture
def analysis(model):
    return analyze_bank(model)


@pytest.fixture
def checkpoint(model, tmp_path):
    model.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_original_texts_are_encoded_again(model, checkpoint):
    analysis = analyze_bank(load_model(checkpoint))
    assert (analysis.prompts, analysis.assumed) == (model.prompts, False)
    encoder = build_text_encoder("wordllama")
    assert np.allclose(analysis.before[2, 3], encoder([f"someone does {model.prompts[3]}"])[0].numpy(), atol=1e-6)
    moved = np.abs(analysis.after - analysis.before).max(-1) > 1e-6
    assert np.argwhere(moved).tolist() == [[1, 2]]
    assert [c["moved"] > 1e-3 for c in analysis.as_json()["classes"]] == [False, False, True, False]


def test_missing_prompts_default_to_class_names(model, checkpoint):
    config = json.loads((checkpoint / "config.json").read_text())
    del config["prompts"], config["sha256"]  # an earlier version
    (checkpoint / "config.json").write_text(json.dumps(config))
    analysis = analyze_bank(load_model(checkpoint))
    assert (analysis.prompts, analysis.assumed) == (model.class_names, True)


def test_similarities_are_cosines_of_mean_directions(analysis):
    units = analysis.after / np.linalg.norm(analysis.after, axis=-1, keepdims=True)
    means = units.mean(0)
    expected = means[0] @ means[2] / np.linalg.norm(means[0]) / np.linalg.norm(means[2])
    assert analysis.similarity_after[0, 2] == pytest.approx(expected, abs=1e-5)
    changed = np.abs(analysis.similarity_after - analysis.similarity_before) > 1e-5
    assert changed[2, [0, 1, 3]].all() and not changed[np.ix_([0, 1, 3], [0, 1, 3])].any()


def test_best_prompt_is_nearest_to_the_prototype(model):
    with torch.no_grad():  # the prototype of "jump" is its third text
        model.video_projection.weight.copy_(torch.eye(16, model.backbone.channels))
        model.video_projection.bias.zero_()
        expected = model.semantics.projection(model.semantics.bank[2, 2])
        model.video_head.weight[2, :16] = 3 * expected
    analysis = analyze_bank(model)
    assert analysis.winners_after[2] == 2 and analysis.likeness_after[2, 2] == pytest.approx(1, abs=1e-5)
    assert np.argwhere(np.abs(analysis.likeness_after - analysis.likeness_before) > 1e-5).tolist() == [[1, 2]]
    assert analysis.as_json()["classes"][2]["prompt_after"] == "someone does to jump"


def test_models_without_a_matching_bank_and_unknown_methods(make_model, model, analysis):
    with pytest.raises(ValueError, match="'PCA', expected one of t-SNE, UMAP"):
        embed(analysis, "PCA")
    with pytest.raises(ValueError, match=r"kind 'backbone'.*kind 'art'"):
        analyze_bank(make_model("backbone"))
    model.options = dataclasses.replace(model.options, templates=["{label}"])
    with pytest.raises(ValueError, match=r"shape \[1, 4, 256\], but the bank has shape \[3, 4, 256\]"):
        analyze_bank(model)


@needs_embed
def test_only_changed_texts_move(analysis):
    embedding = embed(analysis, "t-SNE")
    assert embedding.before.shape == (12, 2) and embedding.labels.tolist() == [0, 1, 2, 3] * 3
    distances = np.linalg.norm(embedding.after - embedding.before, axis=1)
    assert np.flatnonzero(distances).tolist() == [4 + 2]
    assert np.array_equal(embed(analysis, "t-SNE").after, embedding.after)


@pytest.mark.skipif(find_spec("umap") is None, reason="umap-learn is not installed")
def test_umap_embeds_both_banks(analysis):
    embedding = embed(analysis, "UMAP")
    assert embedding.before.shape == embedding.after.shape == (12, 2)
    assert np.isfinite(embedding.after).all()


def random_embedding(analysis, method="t-SNE"):
    positions = np.random.default_rng(0).normal(size=(2, 12, 2))
    return Embedding(method, positions[0], positions[1], np.tile(np.arange(4), 3))


def test_figures_show_the_numbers(analysis):
    figure = embedding_figure(analysis, [random_embedding(analysis), random_embedding(analysis, "UMAP")])
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert [title.split(",")[0] for title in titles] == ["t-SNE"] * 2 + ["UMAP"] * 2
    assert np.allclose(figure.axes[1].collections[0].get_offsets(), random_embedding(analysis).after)
    assert [text.get_text() for text in figure.axes[0].texts] == ["1", "2", "3", "4"]

    images = [axes.images[0].get_array() for axes in similarity_figure(analysis).axes if axes.images]
    assert np.allclose(
        images[2].filled(0), (analysis.similarity_after - analysis.similarity_before) * (1 - np.eye(4)), atol=1e-6
    )
    assert np.ma.getmaskarray(np.ma.masked_invalid(images[0])).diagonal().all()

    for axes, winners in zip(
        prompts_figure(analysis).axes, (analysis.winners_before, analysis.winners_after), strict=True
    ):
        (rings,) = (c for c in axes.collections if isinstance(c, PathCollection))
        assert rings.get_offsets().tolist() == [[winner, c] for c, winner in enumerate(winners)]
    with pytest.raises(ValueError, match="embeddings is empty"):
        embedding_figure(analysis, [])


def test_overlapping_numbers_are_spread():
    positions = np.array([[0.5, 0.5], [0.5, 0.5], [0.51, 0.5], [0.9, 0.9]])
    spread = bank_module._spread(positions, 0.05)
    distance = np.linalg.norm(spread[:, None] - spread[None], axis=2) + np.eye(4)
    assert distance.min() > 0.049
    assert spread[3] == pytest.approx(positions[3], abs=1e-4)


def test_command_writes_files_and_reports_what_it_skips(checkpoint, tmp_path, monkeypatch, capsys):
    def only_one(analysis, method):
        if method == "UMAP":
            raise ModuleNotFoundError("UMAP needs umap: pip install 'art-kernels[embed]'")
        return random_embedding(analysis)

    monkeypatch.setattr(bank_module, "embed", only_one)
    out = tmp_path / "out"
    assert main(["bank", "--checkpoint", str(checkpoint), "--out", str(out)]) == 0
    assert {path.name for path in out.iterdir()} == {"bank.json", "embedding.png", "prompts.png", "similarity.png"}
    assert "UMAP is skipped: UMAP needs umap: pip install 'art-kernels[embed]'" in capsys.readouterr().err
    numbers = json.loads((out / "bank.json").read_text())
    assert list(numbers["embeddings"]) == ["t-SNE"] and np.array(numbers["similarity_after"]).shape == (4, 4)


def test_errors_are_raised_before_anything_is_written(make_model, checkpoint, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["bank", "--checkpoint", str(checkpoint), "--out", str(tmp_path / "file")]) == 2
    assert "directory" in capsys.readouterr().err
    make_model("backbone").save_pretrained(tmp_path / "alone")
    assert main(["bank", "--checkpoint", str(tmp_path / "alone"), "--out", str(tmp_path / "out")]) == 2
    assert "no semantics" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
