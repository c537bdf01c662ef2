"""The keys of a configuration, their defaults, and the checks of their values."""

import difflib
import functools
import math
import re
from dataclasses import dataclass, field
from typing import Any

from art.data.transforms.sampling import SAMPLINGS, FrameSampling
from art.model.options import ARTOptions
from art.terminal import short_repr


class ConfigError(ValueError):
    """An invalid configuration. The message names the key, the value and what was expected."""


@dataclass
class DataConfig:
    """Dataset, decoding and augmentation. The model sets number and size of frames (``num_frames``, ``input_size``).

    Attributes:
        name: name of a registered dataset: "motion", "folder", "csv", ...
        root: directory of the dataset. On the command line also the URL of shards: s3://, gs://, hf:// or https://.
        train_split: split to train on.
        test_split: split whose accuracy is reported, once, for the last checkpoint.
            Without a test split, "test" is the validation split.
        test_fraction: fraction (0..1) of the clips of each class for the test, if ``name`` is "folder" and the root has
            class directories, but no directories of splits. The split is saved as ``splits.csv`` in the run directory.
        split_seed: seed of that split. It is independent of ``seed``, so that all runs are tested on the same clips.
        validation_split: split evaluated during training, used to select ``checkpoints/best``. None uses the test
            split, in which case the test accuracy of ``best`` is biased and should not be reported.
        workers: number of decoding processes; 0 decodes in the training process.
        cache: keep decoded clips in memory (for small datasets).
        decoder: decoder of video files: "pyav", "torchcodec", or "auto", which uses torchcodec if it is installed and
            decodes a probe, else PyAV. Both return the same frames; colors may differ by rounding.
        max_failed_fraction: fraction of clips (0..1) that may be unreadable before training or evaluation stops.
        frame_size: resize the shorter side of each frame to this many pixels and crop it to a square. None keeps frames
            as they are, which requires files of one size.
        sampling: "sparse" (the paper) takes one frame from each of num_frames segments of the clip; "dense" takes a
            window of num_frames × stride frames. Positions are random in training and centered in evaluation.
        stride: with "dense" sampling, take every n-th frame of the window.
        test_views: number of temporal views per clip in the reported evaluation; probabilities (after the softmax) are
            averaged. Sparse views take different frames of each segment, dense views different windows. The paper does
            not specify it; 1 is our reading. Evaluations during training use one view.
        test_crops: 1, or 3 for square crops at the start, center and end of the longer side of each view, averaged too.
        crop_scale: smallest and largest fraction (0..1] of the square's area that a random training crop keeps.
        crop_aspect: smallest and largest width-to-height ratio of a random training crop (our addition; [1, 1] crops
            squares).
        flip: probability of a horizontal flip in training, if the dataset defines the class of a mirrored clip.
        brightness: largest relative change in training (this and the next nine are our additions, off by default).
        contrast: largest relative change in training.
        saturation: largest relative change in training.
        hue: largest hue rotation in training, in degrees.
        permute_channels: probability of permuting the RGB channels in training.
        rand_augment: N of RandAugment, the number of operations per training clip, after the above; 0 disables it.
        rand_magnitude: M of RandAugment, 0 to 10.
        mixup: α of mixup for each pair of clips of a training batch; 0 disables it. Labels become class probabilities.
        cutmix: α of CutMix; 0 disables it. With mixup as well, each is applied to half of the pairs.
        mix_probability: probability that a pair is mixed, if mixup or CutMix is enabled.
    """

    name: str = "motion"
    root: str = "data/motion"
    train_split: str = "train"
    test_split: str = "test"
    test_fraction: float = 0.2
    split_seed: int = 0
    validation_split: str | None = None
    workers: int = 2
    cache: bool = False
    decoder: str = "pyav"
    max_failed_fraction: float = 0.0
    frame_size: int | None = None
    sampling: str = "sparse"
    stride: int = 1
    test_views: int = 1
    test_crops: int = 1
    crop_scale: list[float] = field(default_factory=lambda: [0.6, 1.0])
    crop_aspect: list[float] = field(default_factory=lambda: [1.0, 1.0])
    flip: float = 0.5
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    permute_channels: float = 0.0
    rand_augment: int = 0
    rand_magnitude: float = 9.0
    mixup: float = 0.0
    cutmix: float = 0.0
    mix_probability: float = 1.0

    @property
    def frame_sampling(self) -> FrameSampling:
        """The frame sampler."""
        return FrameSampling(self.sampling, self.stride)

    @property
    def mixes(self) -> bool:
        """Whether training clips are mixed."""
        return (self.mixup > 0 or self.cutmix > 0) and self.mix_probability > 0


@dataclass
class OptimConfig:
    """Optimizers and schedule. Defaults are the paper's where specified: 50 epochs, 0.01 divided by 10 every 20.

    Attributes:
        optimizer: "sgd" (with momentum) or "adamw". Our reading: SGD.
        lr: base learning rate of every parameter group without its own rate.
        backbone_lr: learning rate of the backbone; None: ``lr``.
        backbone_optimizer: optimizer of the backbone; None: ``optimizer``. Our reading for a CLIP-initialized backbone
            is "adamw" with a small ``backbone_lr``.
        bank_lr: learning rate of the agent copy S_a of the semantics bank (a separate rate is our reading).
        momentum: momentum of SGD.
        weight_decay: on weight matrices of the backbone and the head (our reading; the paper specifies none).
        backbone_weight_decay: on weight matrices of the backbone; None: ``weight_decay``. AdamW needs a larger value
            than SGD.
        epochs: passes over the training split.
        batch_size: clips per optimizer step over all ranks.
        accumulate: number of equal microbatches per batch whose gradients are accumulated: uses less memory, and the
            step is the same except for layers that depend on the whole batch (batch norm) or draw random numbers
            (dropout).
        schedule: "step" (the paper) or "cosine".
        step_epochs: "step" divides the learning rate by 10 every ``step_epochs`` epochs.
        warmup_epochs: epochs of linear warm-up from 0 (may be a fraction; 0 disables it).
        clip_grad_norm: largest total gradient norm; None disables clipping.
        layer_decay: factor (0..1) between the rate of a backbone layer and that of the next layer; the last layer has
            ``backbone_lr``. None uses one rate for all layers.
        ema: decay (0..1) of an exponential moving average of all weights, which is evaluated and saved for inference.
            The decay starts at (1 + steps) / (10 + steps), our reading. None uses the weights themselves.
    """

    optimizer: str = "sgd"
    lr: float = 0.01
    backbone_lr: float | None = None
    backbone_optimizer: str | None = None
    bank_lr: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 1e-4
    backbone_weight_decay: float | None = None
    epochs: int = 50
    batch_size: int = 8
    accumulate: int = 1
    schedule: str = "step"
    step_epochs: int = 20
    warmup_epochs: float = 0.0
    clip_grad_norm: float | None = None
    layer_decay: float | None = None
    ema: float | None = None


@dataclass
class LogConfig:
    """Loggers other than ``metrics.jsonl``, and optional metrics that cost time.

    Attributes:
        tensorboard: write TensorBoard files to ``tensorboard`` in the run directory.
        wandb: Weights & Biases project to log to (extra ``[wandb]``).
        mlflow: MLflow tracking URI to log to (extra ``[mlflow]``): "http://host:5000", "sqlite:///runs.db".
        mlflow_experiment: MLflow experiment.
        gradient_norms: log gradient norms, total and per parameter group, before clipping, every ``log_every`` steps.
        histograms_every: every n steps, log similarities between the semantics of two classes, and between x_cls and
            the semantics of its class and of other classes (kind "art" only). None disables it.
        profile: [first, last]: trace these steps with torch.profiler to ``trace`` in the run directory; None: off.
    """

    tensorboard: bool = True
    wandb: str | None = None
    mlflow: str | None = None
    mlflow_experiment: str = "art"
    gradient_norms: bool = True
    histograms_every: int | None = None
    profile: list[int] | None = None


@dataclass
class ParallelConfig:
    """Distributed training. Ignored by a single process.

    Attributes:
        strategy: "ddp" replicates the model on each rank; "fsdp" (FSDP2) shards parameters, gradients and optimizer
            states.
        fsdp_block: a layer (a child of a ModuleList or Sequential) with at least this many parameters is its own FSDP
            unit; smaller ones are gathered with the rest of the model.
        sync_batch_norm: compute batch norm statistics over all ranks, as a single process would; otherwise each rank
            uses its own, and the running statistics are those of rank 0.
        unused_parameters: detect parameters that received no gradient in each step ("ddp" waits for them otherwise).
        timeout: seconds that a rank waits for the others before it fails.
    """

    strategy: str = "ddp"
    fsdp_block: int = 1_000_000
    sync_batch_norm: bool = True
    unused_parameters: bool = False
    timeout: float = 1800.0


@dataclass
class CheckpointConfig:
    """When training checkpoints are saved and how many are kept. One is always saved after each epoch.

    Attributes:
        every_steps: also save every n steps; None disables it.
        keep: number of checkpoints to keep: ``checkpoints/last`` and earlier ones as ``checkpoints/step-<number>``.
        asynchronous: write in the background while training continues.
    """

    every_steps: int | None = None
    keep: int = 1
    asynchronous: bool = False


@dataclass
class Config:
    """Configuration of a run.

    Attributes:
        seed: seed of all random generators.
        output: run directory.
        kind: "art"; "backbone" for the baseline, the backbone with a linear head; or "probe", a frozen backbone with
            the head ``model.head``.
        device: "auto" (CUDA if available, else CPU), "cpu", "cuda", "cuda:<number>" or "mps".
        precision: "fp32", or mixed precision: "bf16" or "fp16" (with loss scaling).
        tf32: allow TF32 (10-bit mantissa) in float32 matrix products and convolutions on CUDA.
        compile: compile the model's forward and backward pass with ``torch.compile`` in training.
        eval_every: evaluate every n epochs (the last epoch is always evaluated).
        log_every: log the losses every n steps.
        report: write ``report.html`` at the end.
        data: dataset and augmentation.
        model: options of :class:`art.ARTModel`.
        optim: optimizers and schedule.
        parallel: distributed training.
        checkpoints: checkpoint frequency and retention.
        log: loggers.
    """

    seed: int = 0
    output: str = "runs/art"
    kind: str = "art"
    device: str = "auto"
    precision: str = "fp32"
    tf32: bool = False
    compile: bool = False
    eval_every: int = 1
    log_every: int = 10
    report: bool = True
    data: DataConfig = field(default_factory=DataConfig)
    model: ARTOptions = field(default_factory=ARTOptions)
    optim: OptimConfig = field(default_factory=OptimConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    checkpoints: CheckpointConfig = field(default_factory=CheckpointConfig)
    log: LogConfig = field(default_factory=LogConfig)


_CHOICES = {
    "data.decoder": ("pyav", "torchcodec", "auto"),
    "kind": ("art", "backbone", "probe"),
    "precision": ("fp32", "bf16", "fp16"),
    "optim.optimizer": ("sgd", "adamw"),
    "optim.backbone_optimizer": (None, "sgd", "adamw"),
    "optim.schedule": ("step", "cosine"),
    "parallel.strategy": ("ddp", "fsdp"),
    "data.sampling": SAMPLINGS,
    "data.test_crops": (1, 3),
}
#: Keys whose values are None or in a range: the keys, the test, and the expected values.
_RANGES = (
    ("eval_every log_every data.frame_size data.stride data.test_views optim.epochs optim.batch_size optim.accumulate "
     "optim.step_epochs log.histograms_every parallel.fsdp_block checkpoints.every_steps checkpoints.keep",
     lambda v: v >= 1, "at least 1"),
    ("seed data.split_seed", lambda v: 0 <= v < 2**63, "an integer, 0 to 2**63 - 1"),
    ("data.workers data.rand_augment data.mixup data.cutmix optim.lr optim.backbone_lr "
     "optim.bank_lr optim.momentum optim.weight_decay optim.backbone_weight_decay optim.warmup_epochs",
     lambda v: 0 <= v < math.inf, "a finite number, 0 or more"),
    ("data.max_failed_fraction data.flip data.brightness data.contrast data.saturation data.permute_channels "
     "data.mix_probability", lambda v: 0 <= v <= 1, "a fraction, 0 to 1"),
    ("data.test_fraction", lambda v: 0 < v < 1, "a fraction above 0 and below 1"),
    ("parallel.timeout", lambda v: 0 < v < math.inf, "a number of seconds above 0"),
    ("optim.clip_grad_norm", lambda v: 0 < v < math.inf, "a number above 0, or null for no clipping"),
    ("optim.layer_decay optim.ema", lambda v: 0 < v < 1, "a number above 0 and below 1, or null for none"),
    ("log.wandb log.mlflow log.mlflow_experiment", lambda v: v.strip() != "", "a name, or null for none"),
    ("log.profile", lambda v: len(v) == 2 and 1 <= v[0] <= v[1], "[first step, last step]"),
    ("data.hue", lambda v: 0 <= v <= 180, "degrees, 0 to 180"),
    ("data.rand_magnitude", lambda v: 0 <= v <= 10, "a magnitude, 0 to 10"),
    ("data.crop_aspect", lambda v: len(v) == 2 and 0 < v[0] <= v[1] < math.inf, "[smallest, largest] ratios"),
    ("data.crop_scale", lambda v: len(v) == 2 and 0 < v[0] <= v[1] <= 1, "[smallest, largest] fractions in (0, 1]"),
    ("output", lambda v: v.strip() != "" and "\0" not in v, "the path of the run directory"),
    ("data.root", lambda v: v.strip() != "" and "\0" not in v, "the path of the directory of the clips"),
    ("device", lambda v: re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", v), "auto, cpu, cuda, cuda:<number> or mps"),
)  # fmt: skip


def get_value(config: Config, key: str) -> Any:
    """Return the value of a dotted key."""
    return functools.reduce(getattr, key.split("."), config)


def check_values(config: Config) -> None:
    """Raise :class:`ConfigError` for a value out of range or a combination that is not supported."""

    def check(key: str, valid: object, expected: str) -> None:
        if not valid:
            raise ConfigError(f"{key}: got {short_repr(get_value(config, key), 100)}, expected {expected}")

    for key, choices in _CHOICES.items():
        value = get_value(config, key)
        near = difflib.get_close_matches(str(value), [c for c in choices if isinstance(c, str)], n=1)
        listed = ", ".join("null" if c is None else str(c) for c in choices)
        check(key, value in choices, f"one of {listed}" + (f" (did you mean {near[0]}?)" if near else ""))
    for keys, valid, expected in _RANGES:
        for key in keys.split():
            value = get_value(config, key)
            check(key, value is None or valid(value), expected)
    data, clips, accumulate = config.data, config.optim.batch_size, config.optim.accumulate
    nce = config.kind == "art" and config.model.weight_nce != 0
    dense, mixes = data.sampling == "dense", data.mixes
    check("data.stride", dense or data.stride == 1, "1 with data.sampling=sparse, which has no stride")
    check("optim.batch_size", clips % 2 == 0 or not mixes, "an even number with data.mixup or data.cutmix")
    check("model.weight_nce", not (nce and mixes), "0 with data.mixup or data.cutmix: a mixed clip has several classes")
    check("optim.accumulate", clips % accumulate == 0, f"a divisor of optim.batch_size={clips}")
    even = accumulate == 1 or clips // accumulate % 2 == 0 or not mixes
    expected = f"microbatches of an even number of clips with data.mixup or data.cutmix, not {clips}/{accumulate}"
    check("optim.accumulate", even, expected)
    compared = "1 with model.weight_nce, which compares the tracklets of the whole batch"
    check("optim.accumulate", accumulate == 1 or not nce, compared)
