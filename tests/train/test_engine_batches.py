import pytest
import torch

from art.model.pretrained import build_model
from art.train import batches as batches_module
from art.train.batches import EvaluationBatches, TrainingBatches, open_split
from art.train.config import ConfigError
from art.train.distributed import Ranks

CPU = torch.device("cpu")
AUGMENTED = (
    "data.rand_augment=2", "data.crop_aspect=[0.75, 1.33]", "data.hue=30", "data.contrast=0.4",
    "data.permute_channels=1",
)  # fmt: skip
MIXED = ("data.mixup=0.8", "data.cutmix=0.5")


@pytest.fixture
def prepared(configured, tmp_path):
    """``prepared(batch_size, *overrides, world_size=1, epoch=0)``: the augmented batches of an epoch, those of the
    ranks put together."""

    def make(batch_size, *overrides, world_size=1, epoch=0):
        config = configured(tmp_path, f"optim.batch_size={batch_size}", *overrides)
        clip_set = open_split(config, "train")
        object.__setattr__(clip_set, "mirror", (1, 0, 2))
        model = build_model("backbone", clip_set.class_names, config.model)
        model.sampling = config.data.frame_sampling
        ranks = [
            TrainingBatches(clip_set, config, model, CPU, ranks=Ranks(CPU, rank, world_size))
            for rank in range(world_size)
        ]
        steps = zip(*([own.prepare(batch) for batch in own.epoch(epoch)] for own in ranks), strict=True)
        return [[torch.cat(parts) for parts in zip(*map(content, step), strict=True)] for step in steps]

    def content(batch):
        return [batch.video, batch.labels, batch.indices, batch.targets]

    return make


def same(first, second):
    return len(first) == len(second) and all(
        torch.equal(a, b) for one, other in zip(first, second, strict=True) for a, b in zip(one, other, strict=True)
    )


@pytest.mark.parametrize("mixed", [(), MIXED], ids=["plain", "mixed"])
def test_one_process_and_two_ranks_see_the_same_clips_bit_for_bit(prepared, mixed):
    whole = prepared(8, *AUGMENTED, *mixed)
    assert len(whole) == 1 and len(whole[0][0]) == 8
    assert same(prepared(8, *AUGMENTED, *mixed, world_size=2), whole)
    assert same(prepared(8, *AUGMENTED, *mixed, world_size=4), whole)
    assert same(prepared(8, *AUGMENTED, *mixed, "data.workers=2"), whole)
    assert not same(prepared(8, *AUGMENTED, *mixed, epoch=1), whole)
    assert not same(prepared(8, *AUGMENTED, *mixed, "seed=1"), whole)


def test_augmentation_leaves_the_global_generators_alone(prepared):
    before = torch.get_rng_state()
    torch.manual_seed(5)
    first = prepared(4, *AUGMENTED, *MIXED)
    torch.manual_seed(6)
    assert same(prepared(4, *AUGMENTED, *MIXED), first)
    torch.set_rng_state(before)


def test_an_epoch_goes_on_with_the_same_clips(configured, tmp_path):
    config = configured(tmp_path, *AUGMENTED)
    clip_set = open_split(config, "train")
    batches = TrainingBatches(clip_set, config, build_model("backbone", clip_set.class_names, config.model), CPU)
    whole = [batches.prepare(batch).video for batch in batches.epoch(3)]
    (rest,) = [batches.prepare(batch).video for batch in batches.epoch(3, start=1)]
    assert torch.equal(rest, whole[1])


def test_clips_stay_uint8_until_they_are_on_the_device(configured, tmp_path, monkeypatch):
    config = configured(tmp_path)
    clip_set = open_split(config, "train")
    model = build_model("backbone", clip_set.class_names, config.model)
    batches = TrainingBatches(clip_set, config, model, CPU)
    (batch, _) = batches.epoch(0)
    assert batch.video.dtype == torch.uint8 and batch.draws.dtype == torch.float32
    moved = []

    def move(batch, device):
        moved.append(batch.video.dtype)
        return original(batch, device)

    original = batches_module._moved
    monkeypatch.setattr(batches_module, "_moved", move)
    prepared = batches.prepare(batch)
    (shown, _) = EvaluationBatches(open_split(config, "test"), config, model, CPU)
    assert moved == [torch.uint8] * 3 and shown.video.dtype == torch.uint8
    assert prepared.video.dtype == torch.float32 and prepared.video.max() <= 1


def test_mixed_labels_are_shares_and_the_larger_one_is_the_label(prepared):
    for _, labels, _, shares in prepared(4, *MIXED):
        assert shares.shape == (4, 3)
        torch.testing.assert_close(shares.sum(1), torch.ones(4))
        assert torch.equal(shares.argmax(1), labels)
    plain = prepared(4)
    assert all(torch.equal(targets, labels) for _, labels, _, targets in plain)


def test_fewer_clips_than_all_ranks_take_are_one_step(prepared):
    (step,) = prepared(18, world_size=3)
    assert sorted(step[2].tolist()) == list(range(9))


@pytest.mark.parametrize(
    ("size", "ranks", "overrides", "told"),
    [
        (4, 3, [], "a step has 4 clips for 3 ranks, expected a multiple of 3"),
        (18, 2, [], "a step has 9 clips for 2 ranks, expected a multiple of 2"),
        (6, 2, MIXED, "a step has 6 clips for 2 ranks, expected a multiple of 4: .* need pairs"),
    ],
)
def test_clips_that_cannot_be_divided_among_the_ranks_are_refused(prepared, size, ranks, overrides, told):
    with pytest.raises(ConfigError, match=rf"optim\.batch_size: {told}"):
        prepared(size, *overrides, world_size=ranks)
