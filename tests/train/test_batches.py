"""Training and evaluation batches: determinism over ranks and workers, mixing, shards, and unreadable clips."""

import logging

import pytest
import torch

from art.data.dataset import ClipDataset, DataError
from art.data.datasets.base import open_dataset
from art.model.loading import build_model
from art.train import batches as batches_module
from art.train.batches import EvaluationBatches, Splits, TrainingBatches, open_split
from art.train.config import ConfigError
from art.train.distributed import DistContext
from art.train.loop import train

CPU = torch.device("cpu")
AUGMENTED = (
    "data.rand_augment=2", "data.crop_aspect=[0.75, 1.33]", "data.hue=30", "data.contrast=0.4",
    "data.permute_channels=1",
)  # fmt: skip
MIXED = ("data.mixup=0.8", "data.cutmix=0.5")


def training_batches(config, clip_set, model=None, **options):
    model = model or build_model("backbone", clip_set.class_names, config.model)
    model.sampling = config.data.frame_sampling
    return TrainingBatches(clip_set, config.data, config.optim, model, CPU, seed=config.seed, **options)


@pytest.fixture
def load_epoch(configured, tmp_path):
    """``load_epoch(batch_size, *overrides, world_size=1, epoch=0)`` returns the augmented batches over all ranks as
    [video, labels, indices, targets]."""

    def load(batch_size, *overrides, world_size=1, epoch=0):
        config = configured(tmp_path, f"optim.batch_size={batch_size}", *overrides)
        clip_set = open_split(config.data, "train")
        object.__setattr__(clip_set, "mirror", (1, 0, 2))
        ranks = [
            training_batches(config, clip_set, dist_ctx=DistContext(CPU, rank, world_size))
            for rank in range(world_size)
        ]
        steps = zip(*([rank.prepare(batch) for batch in rank.epoch(epoch)] for rank in ranks), strict=True)
        values = ([[batch.video, batch.labels, batch.indices, batch.targets] for batch in step] for step in steps)
        return [[torch.cat(parts) for parts in zip(*step, strict=True)] for step in values]

    return load


def equal(first, second):
    return len(first) == len(second) and all(
        torch.equal(a, b) for one, other in zip(first, second, strict=True) for a, b in zip(one, other, strict=True)
    )


@pytest.mark.parametrize("mixed", [(), MIXED], ids=["plain", "mixed"])
def test_clips_are_bitwise_equal_for_any_number_of_ranks_and_workers(load_epoch, mixed):
    expected = load_epoch(8, *AUGMENTED, *mixed)
    assert len(expected) == 1 and len(expected[0][0]) == 8
    assert equal(load_epoch(8, *AUGMENTED, *mixed, world_size=2), expected)
    assert equal(load_epoch(8, *AUGMENTED, *mixed, world_size=4), expected)
    assert equal(load_epoch(8, *AUGMENTED, *mixed, "data.workers=2"), expected)
    assert not equal(load_epoch(8, *AUGMENTED, *mixed, epoch=1), expected)
    assert not equal(load_epoch(8, *AUGMENTED, *mixed, "seed=1"), expected)


def test_augmentation_does_not_use_the_global_generators(load_epoch):
    state = torch.get_rng_state()
    torch.manual_seed(5)
    first = load_epoch(4, *AUGMENTED, *MIXED)
    torch.manual_seed(6)
    assert equal(load_epoch(4, *AUGMENTED, *MIXED), first)
    torch.set_rng_state(state)


def test_resumed_epoch_has_the_same_clips(configured, tmp_path):
    config = configured(tmp_path, *AUGMENTED)
    batches = training_batches(config, open_split(config.data, "train"))
    videos = [batches.prepare(batch).video for batch in batches.epoch(3)]
    (resumed,) = [batches.prepare(batch).video for batch in batches.epoch(3, start=1)]
    assert torch.equal(resumed, videos[1])


def test_clips_are_moved_to_the_device_as_uint8(configured, tmp_path, monkeypatch):
    config = configured(tmp_path)
    clip_set = open_split(config.data, "train")
    model = build_model("backbone", clip_set.class_names, config.model)
    batches = training_batches(config, clip_set, model)
    (batch, _) = batches.epoch(0)
    assert batch.video.dtype == torch.uint8 and batch.draws.dtype == torch.float32
    moved = []
    original = batches_module._to_device

    def to_device(batch, device):
        moved.append(batch.video.dtype)
        return original(batch, device)

    monkeypatch.setattr(batches_module, "_to_device", to_device)
    prepared = batches.prepare(batch)
    (evaluated, _) = EvaluationBatches(open_split(config.data, "test"), config.data, config.optim, model, CPU)
    assert moved == [torch.uint8] * 3 and evaluated.video.dtype == torch.uint8
    assert prepared.video.dtype == torch.float32 and prepared.video.max() <= 1


def test_soft_labels_of_mixed_clips(load_epoch):
    for _, labels, _, targets in load_epoch(4, *MIXED):
        assert targets.shape == (4, 3)
        torch.testing.assert_close(targets.sum(1), torch.ones(4))
        assert torch.equal(targets.argmax(1), labels)
    assert all(torch.equal(targets, labels) for _, labels, _, targets in load_epoch(4))


def test_dataset_smaller_than_a_batch_is_one_step(load_epoch):
    (step,) = load_epoch(18, world_size=3)
    assert sorted(step[2].tolist()) == list(range(9))


@pytest.mark.parametrize(
    ("size", "ranks", "overrides", "message"),
    [
        (4, 3, [], "a step has 4 clips for 3 ranks, expected a multiple of 3"),
        (18, 2, [], "a step has 9 clips for 2 ranks, expected a multiple of 2"),
        (6, 2, MIXED, "a step has 6 clips for 2 ranks, expected a multiple of 4 .* need pairs"),
    ],
)
def test_batch_size_must_be_divisible_by_the_ranks(load_epoch, size, ranks, overrides, message):
    with pytest.raises(ConfigError, match=rf"optim\.batch_size: {message}"):
        load_epoch(size, *overrides, world_size=ranks)


@pytest.mark.slow
def test_training_from_shards_sees_each_clip_once_per_epoch(clips, configured, tmp_path, monkeypatch):
    from art.data.dataset import ShardDataset
    from art.data.shards import write_shards

    for split in ("train", "test"):
        write_shards(open_dataset("csv", clips, split), tmp_path / "shards", shard_bytes=4000)
    drawn = []
    original = ClipDataset.load

    def draw(self, epoch, index):
        assert type(self) is ShardDataset
        if self.train:
            drawn.append((epoch, index))
        return original(self, epoch, index)

    monkeypatch.setattr(ClipDataset, "load", draw)
    overrides = ["data.name=shards", f"data.root={tmp_path / 'shards'}", "optim.epochs=2", "report=true"]
    result = train(configured(tmp_path / "run", *overrides))
    assert len(result.evaluation.labels) == 6
    for epoch in range(2):
        seen = [index for e, index in drawn if e == epoch]
        assert len(seen) == len(set(seen)) == 8  # nine clips in batches of four, the incomplete batch dropped
    assert (tmp_path / "run" / "report.html").stat().st_size > 0


@pytest.fixture(scope="module")
def broken(tmp_path_factory, write_clip):
    """Root of a dataset with 40 training clips, of which one is missing and one is truncated, and four test clips."""
    root = tmp_path_factory.mktemp("broken")
    (root / "classes.txt").write_text("move right\nmove left\nstand\n")
    for split, count in (("train", 40), ("test", 4)):
        names = [f"{split}_{i:02}.mp4" for i in range(count)]
        (root / f"{split}.csv").write_text("path,label\n" + "".join(f"{n},{i % 3}\n" for i, n in enumerate(names)))
        for i, name in enumerate(names):
            write_clip(root / name, i % 3, row=i % 6)
    (root / "train_07.mp4").unlink()
    content = (root / "train_23.mp4").read_bytes()
    (root / "train_23.mp4").write_bytes(content[: len(content) // 2])
    return root


def test_unreadable_clips_are_replaced_with_a_warning(broken, configured, tmp_path, caplog):
    overrides = [f"data.root={broken}", "data.max_failed_fraction=0.05", "optim.epochs=1"]
    with caplog.at_level(logging.WARNING):
        result = train(configured(tmp_path / "run", *overrides))
    assert result.evaluation.total == 4
    warnings = [message for record in caplog.records if "is replaced" in (message := record.getMessage())]
    assert len(warnings) == 2
    assert "train_07.mp4" in warnings[0] and "no such file" in warnings[0]
    assert "train_23.mp4" in warnings[1]


def test_too_many_unreadable_clips_stop_the_run(broken, configured, tmp_path):
    overrides = [f"data.root={broken}", "data.max_failed_fraction=0.03", "optim.epochs=1"]
    with pytest.raises(DataError, match=r"2 of 40 clips \(5\.0%\)") as error:
        train(configured(tmp_path / "run", *overrides))
    assert "train_07.mp4" in str(error.value) and "train_23.mp4" in str(error.value)


@pytest.fixture
def class_directories(tmp_path):
    """Empty files of three persons and two classes."""
    for i in range(12):
        path = tmp_path / "own" / ("run", "walk")[i % 2] / ("anna", "ben", "carl")[i % 3] / f"{i}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path / "own"


def test_split_of_class_directories_is_saved_and_used_again(configured, class_directories, tmp_path):
    own = ["data.name=folder", f"data.root={class_directories}"]
    data = configured(tmp_path, *own, "data.split_seed=5").data
    splits = Splits.open(data)
    assert (splits.train.split, splits.test.split, len(splits.train), len(splits.test)) == ("train", "test", 8, 4)
    assert splits.problems()[0].startswith("no split directories: ")
    assert open_split(data, "test") == splits.test
    splits.save(tmp_path)
    other_seed = configured(tmp_path, *own, "data.split_seed=6", "data.test_fraction=0.5").data
    resumed = Splits.open(other_seed, tmp_path)
    assert (resumed.train, resumed.test) == (splits.train, splits.test)
    assert open_split(other_seed, "test", tmp_path) == splits.test
    before = (tmp_path / "splits.csv").read_text()
    resumed.save(tmp_path)
    assert (tmp_path / "splits.csv").read_text() == before
    assert resumed.problems() == []


def test_problems_of_splits(configured, tmp_path, write_clip):
    for name in ("a", "b", "c"):
        write_clip(tmp_path / f"{name}.mp4", 0, ord(name) - ord("a"))
    (tmp_path / "train.csv").write_text("path,label\na.mp4,run\nb.mp4,walk\n")
    (tmp_path / "val.csv").write_text("path,label\na.mp4,run\nc.mp4,jump\n")
    own = configured(tmp_path, f"data.root={tmp_path}").data
    splits = Splits.open(own)
    assert (splits.test.split, splits.generated) == ("val", None), "there is no test table"
    splits.save(tmp_path)
    assert not (tmp_path / "splits.csv").exists()
    leak, classes = splits.problems()
    assert leak.startswith("1 of 2 clips are in both 'train' and 'val', such as a.mp4")
    assert classes == "1 of 3 classes has no training clips: 'jump' (1 in 'val')"
    with pytest.raises(ConfigError, match=r"data\.test_split: .* has no split 'test', and 'val' is already"):
        Splits.open(configured(tmp_path, f"data.root={tmp_path}", "data.validation_split=val").data)
