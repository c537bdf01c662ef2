"""`art.tools.profile`: counts by stage vs. manual counts, order of the stages, measurements and written files."""

import json
from contextlib import nullcontext

import pytest
import torch

from art import ARTModel, BackboneClassifier
from art.cli import main
from art.eval.report.curves import cost_figure
from art.tools.profile import STAGES, as_table, count_stages, measure_stages, profile
from art.tools.profile.count import stage_hooks
from art.train.config import load_config

pytestmark = pytest.mark.slow

FRAMES, PATCHES, WIDTH, DIM, HIDDEN, CLASSES = 3, 9, 12, 8, 10, 5
BACKBONE = {"width": WIDTH, "layers": 2, "heads": 2, "patch_size": 4, "input_size": 12, "global_blocks": [1]}
OPTIONS = {
    "num_frames": FRAMES, "backbone_options": BACKBONE, "latent_dim": DIM, "num_heads": 2, "feedforward_dim": HIDDEN,
    "enhancement_layers": 1, "activation_layers": 2,
}  # fmt: skip
NAMES = [f"class {index}" for index in range(CLASSES)]
BANK = torch.randn(4, CLASSES, 6, generator=torch.Generator().manual_seed(0))


def make(kind=ARTModel, **options):
    more = {"semantics": BANK} if kind is ARTModel else {}
    return kind(NAMES, "uniformerv2_b16", **{**OPTIONS, **more, **options})


def by_stage(counts):
    return {count.stage: count for count in counts}


def test_counts_match_manual_counts():
    found = by_stage(count_stages(make, clips=2, precision=nullcontext))
    assert tuple(found) == STAGES
    tokens, clips = PATCHES + 1, 2
    local = FRAMES * (tokens * 12 * WIDTH**2 + 2 * tokens**2 * WIDTH)
    # One query, its rows folded with W_K and pooled before W_V; then the MLP.
    attended = 4 * WIDTH**2 + 2 * 2 * FRAMES * tokens * WIDTH
    around = FRAMES * PATCHES * WIDTH * 27 + attended + 8 * WIDTH**2
    folding = 2 * WIDTH**2  # β through W_K and W_V, once for all clips
    patches = FRAMES * PATCHES * 3 * 16 * WIDTH
    assert found["backbone"].forward_macs == clips * (patches + 2 * local + around) + folding
    joined = PATCHES + 2  # with two semantics
    layer = joined * (4 * DIM**2 + 2 * DIM * HIDDEN) + 2 * joined**2 * DIM
    assert found["enhancement"].forward_macs == clips * FRAMES * layer
    queries = 2 * (4 * DIM**2 + 2 * DIM * HIDDEN) + 2 * 2 * 2 * PATCHES * DIM  # 2 queries of 2 heads
    assert found["activation"].forward_macs == clips * FRAMES * 2 * queries
    assert found["aggregation"].forward_macs == clips * FRAMES * 2 * 2 * DIM
    assert found["heads"].forward_macs == clips * CLASSES * (2 * WIDTH + 2 * DIM)
    projected = clips * (FRAMES * PATCHES + 1) * WIDTH * DIM
    bank = 4 * CLASSES * (6 + clips) * DIM
    assert found["semantics"].forward_macs == projected + bank
    # The backward pass takes twice the products, and recomputes the scores.
    assert found["heads"].backward_macs == 2 * found["heads"].forward_macs
    attention = clips * FRAMES * joined**2 * DIM
    assert found["enhancement"].backward_macs == 2 * found["enhancement"].forward_macs + attention


def test_parameters_are_counted_once():
    for kind in (ARTModel, BackboneClassifier):
        counts = count_stages(lambda kind=kind: make(kind), precision=nullcontext)
        assert sum(count.parameters for count in counts) == sum(p.numel() for p in make(kind).parameters())


def test_activations_are_the_tensors_saved_by_autograd():
    found = by_stage(count_stages(make, precision=nullcontext))
    model, saved = make().train(), {}
    video, labels = torch.rand(1, FRAMES, 3, 12, 12), torch.zeros(1, dtype=torch.long)
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers(), video)}

    def save(tensor):
        saved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        model.loss(model(video), labels)
    real = sum(t.untyped_storage().nbytes() for pointer, t in saved.items() if pointer not in own)
    assert sum(count.activation_bytes for count in found.values()) == pytest.approx(real, rel=0.02)
    assert found["enhancement"].activation_bytes > found["activation"].activation_bytes > 0


def test_stages_follow_the_passes_and_do_not_change_results():
    torch.manual_seed(0)
    model = make(dropout=0.0, backbone_options={**BACKBONE, "global_dropout": 0.0}).train()
    video, labels = torch.rand(2, FRAMES, 3, 12, 12), torch.tensor([0, 1])

    def step(enter):
        model.zero_grad()
        with stage_hooks(model, enter):
            loss = model.loss(model(video), labels).total
        passed = len(seen)
        loss.backward()
        return passed, loss, [parameter.grad for parameter in model.parameters()]

    seen = []
    _, plain_loss, plain = step(lambda stage: None)
    passed, loss, gradients = step(seen.append)
    assert list(dict.fromkeys(seen[:passed])) == list(STAGES[:-1])
    assert list(dict.fromkeys(seen[passed:])) == list(reversed(STAGES[:-1]))
    assert torch.equal(loss, plain_loss)
    for one, other in zip(gradients, plain, strict=True):
        assert (one is None) == (other is None) and (one is None or torch.equal(one, other))
    assert not model.backbone._forward_hooks and not model.backbone._forward_pre_hooks


@pytest.mark.parametrize("kind", [ARTModel, BackboneClassifier])
def test_every_stage_is_measured(kind):
    model, video, labels = make(kind), torch.rand(1, FRAMES, 3, 12, 12), torch.zeros(1, dtype=torch.long)
    found = by_stage(measure_stages(model, video, labels, precision=nullcontext, repetitions=2))
    stages = STAGES if kind is ARTModel else ("backbone", "heads", "loss")
    for stage in stages:
        expected = {"forward", "backward"} | ({"inference"} if stage != "loss" else set())
        assert set(found[stage].ms) == set(found[stage].peak_bytes) == expected
        assert min(found[stage].ms.values()) > 0
    assert all(not found[stage].ms for stage in STAGES if stage not in stages)
    assert found["backbone"].peak_bytes["backward"] > found["backbone"].peak_bytes["inference"]
    assert all(parameter.grad is None for parameter in model.parameters())


def test_unsupported_device_and_no_stages():
    with pytest.raises(ValueError, match="stages is empty"):
        cost_figure([])
    video = torch.empty(1, FRAMES, 3, 12, 12, device="meta")
    with pytest.raises(ValueError, match="device: got 'meta', expected cpu or cuda"):
        measure_stages(make(), video, torch.zeros(1), precision=nullcontext)


def test_large_model_is_counted_without_memory():
    options = ["model.backbone=uniformerv2_l14", "model.num_frames=16"]
    result = profile(load_config(None, options), measure=False)
    total = sum(stage["forward_macs"] for stage in result["stages"] if stage["stage"] != "loss") / 1e9
    assert 1300 < total < 1332
    assert "total" in as_table(result)


def test_command_writes_table_json_and_figure(tmp_path, capsys):
    config = tmp_path / "tiny.yaml"
    config.write_text(
        f"device: cpu\noutput: {tmp_path / 'run'}\nmodel:\n  num_frames: 2\n  latent_dim: 16\n  num_heads: 2\n"
        "  feedforward_dim: 16\n  enhancement_layers: 1\n  activation_layers: 1\n"
        "  backbone_options: {width: 4, depth: [1, 1, 1]}\n"
    )
    assert main(["profile", str(config), "--classes", "3", "--repetitions", "2", "kind=art", "precision=bf16"]) == 0
    out = capsys.readouterr().out
    assert "10⁹ multiply-adds" in out and "ms, backward" in out and "\ntotal " in out
    result = json.loads((tmp_path / "run" / "profile" / "profile.json").read_text())
    assert [stage["stage"] for stage in result["stages"]] == list(STAGES)
    assert (tmp_path / "run" / "profile" / "profile.png").read_bytes()[:4] == b"\x89PNG"
    assert main(["profile", str(config), "--count", "--out", str(tmp_path / "counted"), "kind=backbone"]) == 0
    result = json.loads((tmp_path / "counted" / "profile.json").read_text())
    assert [stage["stage"] for stage in result["stages"]] == ["backbone", "heads", "loss"]
    assert "ms" not in result["stages"][0] and "ms" not in capsys.readouterr().out
    assert main(["profile", str(config), "--count", "--out", str(config)]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and f"--out: {config} is a file, expected a " in captured.err
