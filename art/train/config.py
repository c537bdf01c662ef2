"""The configuration of a run: typed, from YAML and dotted overrides; a mistake stops at once, named."""

import dataclasses
import difflib
import functools
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_type_hints

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from art.data.transforms.sampling import SAMPLINGS, FrameSampling
from art.model.options import ARTOptions
from art.train.config_file import ConfigError, one_line, read_config_files


@dataclass
class DataConfig:
    """Which clips, and how they are read. Number and size of frames are the model's (``num_frames``, ``input_size``).

    Attributes:
        name: of a registered data set: "motion", "folder", "csv", ...
        root: the folder that holds it.
        train_split: the split to train on.
        test_split: the split whose accuracy is reported, once, for the last checkpoint.
        validation_split: the split evaluated during training, which chooses ``checkpoints/best``. None evaluates
            the test split there; ``best`` is then chosen on it, and its accuracy there is no fair one to report.
        workers: processes that decode; 0 decodes in the training process.
        cache: keep decoded clips in memory (for small sets).
        decoder: of video files: "pyav", "torchcodec", or "auto": torchcodec where that is installed and decodes a
            probe, else PyAV. The same frames, with colours that may differ by rounding.
        max_bad_share: share (0..1) of clips that may be unreadable before training or evaluation stops.
        frame_size: scale every frame until its shorter side has this many pixels, and cut it square; None leaves frames
            as they are, which needs files of one size.
        sampling: which frames of a clip are taken: "sparse" (the paper's), one of each of num_frames segments of the
            clip, or "dense", a window of num_frames × stride frames; at random in training, in the middle at test.
        stride: of "dense": each so many-th frame of the window.
        test_views: so many times num_frames frames of a clip are looked at in the evaluation that is reported, and the
            probabilities (after the softmax) averaged: sparse views take other frames of each segment, dense ones
            other windows. The paper names none: one is our reading. Evaluations during training look once.
        test_crops: 1, or 3 for squares at the beginning, in the middle and at the end of the longer side of each view,
            averaged with them.
        crop_scale: smallest and largest share (0..1] of the square's area that a random crop keeps in training.
        crop_aspect: smallest and largest ratio of a random crop's width to its height in training (our addition:
            [1, 1] crops squares).
        flip: probability of a horizontal flip in training, where the data set says what a mirrored class is.
        brightness: largest relative change in training (this and the next nine: our additions, off by default).
        contrast: largest relative change in training.
        saturation: largest relative change in training.
        hue: largest turn of the colour circle in training, degrees.
        permute_channels: probability in training that red, green and blue change places.
        rand_augment: N of RandAugment: so many operations on each clip in training, after the above; 0: none.
        rand_magnitude: M of RandAugment, 0 to 10.
        mixup: α of mixup in training, for each two clips of a batch; 0: none. Labels become shares of classes.
        cutmix: α of CutMix likewise; with both, each has half of the pairs.
        mix_probability: that a pair is mixed at all, where one of the two is on.
    """

    name: str = "motion"
    root: str = "data/motion"
    train_split: str = "train"
    test_split: str = "test"
    validation_split: str | None = None
    workers: int = 2
    cache: bool = False
    decoder: str = "pyav"
    max_bad_share: float = 0.0
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
        """Which frames of a clip are taken."""
        return FrameSampling(self.sampling, self.stride)

    @property
    def mixes(self) -> bool:
        """Whether clips are mixed in training."""
        return (self.mixup > 0 or self.cutmix > 0) and self.mix_probability > 0


@dataclass
class OptimConfig:
    """How the parameters move. The defaults are the paper's where it speaks: 50 epochs, 0.01 divided by 10 every 20.

    Attributes:
        optimizer: "sgd" (with momentum) or "adamw". Our reading: SGD.
        lr: base learning rate of everything without a rate of its own.
        backbone_lr: of the backbone; None: ``lr``.
        backbone_optimizer: of the backbone; None: ``optimizer``. Our reading for a CLIP-initialised backbone is
            "adamw" with a small ``backbone_lr``.
        bank_lr: of the agent copy S_a of the semantics bank (that it has its own is our reading).
        momentum: of SGD.
        weight_decay: on matrices of backbone and head (our reading; the paper names none).
        backbone_weight_decay: on those of the backbone; None: ``weight_decay``. AdamW wants another than SGD.
        epochs: passes over the training split.
        batch_size: clips a step, of the whole run.
        accumulate: each batch goes through the model in so many equal parts, and their gradients are added up: less
            memory, the same step but for what a layer sees of the whole batch (batch normalisation) or draws (dropout).
        schedule: "step" (the paper's) or "cosine".
        step_epochs: "step" divides by 10 after each so many epochs.
        warmup_epochs: linear warm-up from 0, in epochs (may be a fraction; 0: none).
        clip_grad_norm: largest norm of all gradients together; None: no clipping.
        layer_decay: the rate of each layer of the backbone is this many times (0..1) that of the layer after it, whose
            last has ``backbone_lr``; None: one rate for all of them.
        ema: decay (0..1) of a moving average of all weights, which is what is evaluated and saved for use; it begins
            smaller, (1 + steps) / (10 + steps), our reading. None: the weights themselves.
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
    """Where the numbers of a training go beside ``metrics.jsonl``, and which of them cost something.

    Attributes:
        tensorboard: write the folder ``tensorboard`` of the run.
        wandb: name of a Weights & Biases project to write to (extra ``[wandb]``).
        mlflow: tracking URI of MLflow to write to (extra ``[mlflow]``): "http://host:5000", "sqlite:///runs.db".
        mlflow_experiment: the experiment there.
        gradient_norms: each ``log_every`` steps, norms of the gradients, of all and by group, before clipping.
        histograms_every: each so many steps, how alike the semantics of two classes are, and x_cls and the semantics of
            its class and of the others, as the bank of kind "art" has them; null: never.
        profile: [first, last]: trace these steps with torch.profiler into the folder ``trace`` of the run; null: none.
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
    """How several processes train together. One process alone needs none of it.

    Attributes:
        strategy: "ddp": each rank has the whole model; or "fsdp" (FSDP2): each has a share of every parameter, of its
            gradient and of the optimizer's state, and gets the rest when it is needed.
        fsdp_block: parameters from which on a layer (a member of a ModuleList or a Sequential) is put together alone,
            just before it is needed; all smaller ones are together at once with the rest of the model.
        sync_batch_norm: batch normalisation takes means and variances over the clips of all ranks, as one process
            would; off, of each rank's alone, and the running ones are those of rank 0.
        unused_parameters: look in each step for parameters that no loss reaches ("ddp" waits for them otherwise).
        timeout: seconds that a rank waits for another before it gives up.
    """

    strategy: str = "ddp"
    fsdp_block: int = 1_000_000
    sync_batch_norm: bool = True
    unused_parameters: bool = False
    timeout: float = 1800.0


@dataclass
class CheckpointConfig:
    """When the state of a training is saved, and how much of it is kept. It is saved after each epoch in any case.

    Attributes:
        every_steps: also each so many steps; null: not.
        keep: the last so many: ``checkpoints/last``, and those before as ``checkpoints/step-<number>``.
        asynchronous: write in the background while training goes on.
    """

    every_steps: int | None = None
    keep: int = 1
    asynchronous: bool = False


@dataclass
class Config:
    """One run.

    Attributes:
        seed: of every random generator.
        output: the run folder.
        kind: "art", or "backbone": the backbone alone with a linear head, to compare with.
        device: "auto" (CUDA where present, else CPU), "cpu", "cuda", "cuda:<number>" or "mps".
        precision: "fp32", or mixed: "bf16" or "fp16" (with loss scaling).
        tf32: let CUDA round the factors of float32 products and convolutions to TF32 (10 bits of mantissa); off, they
            are taken in float32.
        compile: compile the model's forward and backward pass with ``torch.compile`` in training.
        eval_every: evaluate each so many epochs (the last epoch always).
        log_every: write the losses each so many steps.
        report: write ``report.html`` at the end.
        data: the clips.
        model: the options of :class:`art.ARTModel`.
        optim: the optimisation.
        parallel: several processes.
        checkpoints: what is saved.
        log: the observers.
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


def load_config(path: str | Path | None, overrides: Sequence[str] = ()) -> Config:
    """Defaults, what the YAML file includes, the file, and each ``dotted.key=value`` override, in this order.

    Args:
        path: a YAML file, as :func:`~art.train.config_file.read_config_files` reads it; None: the defaults alone.
        overrides: the value after "=" is read as YAML: ``optim.lr=0.1``, ``model.pretrained=null``.

    Raises:
        FileNotFoundError: if there is no such file.
        ConfigError: for an unknown key, a value of another type, or one that is out of range.

    Examples:
        >>> from art.train.config import load_config
        >>> config = load_config(None, ["optim.lr=0.02", "model.linking=optimal"])
        >>> config.optim.lr, config.model.linking
        (0.02, 'optimal')
        >>> load_config(None, ["optim.learning_rate=0.02"])  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        art.train.config_file.ConfigError: optim.learning_rate: unknown key ...
    """
    sources = [] if path is None else read_config_files(Path(path))
    for override in overrides:
        key, equals, _ = override.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"override {override!r}: expected dotted.key=value, such as optim.lr=0.01")
        sources.append(("the command line", _read_override(override)))
    return _merge(sources)


def config_from_dict(values: dict[str, Any], source: str) -> Config:
    """A configuration from what :func:`to_dict` gave, with the checks of :func:`load_config`; ``source`` names it.

    Examples:
        >>> from art.train.config import Config, config_from_dict, to_dict
        >>> config_from_dict(to_dict(Config(seed=3)), "a saved run") == Config(seed=3)
        True
    """
    return _merge([(source, values)])


def variants(config: Config, over: str) -> dict[str, Config]:
    """One configuration for each of several values of one key, by a name that may be part of a file name.

    Args:
        config: gives everything else.
        over: ``dotted.key=value,value,...``, each value read as YAML: ``model.linking=index,optimal``.

    Raises:
        ConfigError: for an unknown key, a value that does not fit it, fewer than two values, or one that comes twice.

    Examples:
        >>> from art.train.config import Config, variants
        >>> list(variants(Config(), "model.linking=index,optimal"))
        ['index', 'optimal']
    """
    key, equals, values = over.partition("=")
    if not equals:
        raise ConfigError(f"over {over!r}: expected dotted.key=value,value, such as model.linking=index,optimal")
    if key not in _KEYS:
        raise ConfigError(f"{key}: unknown key (got the values {values!r}); {_advice(key)}")
    if _KEYS[key] == _GROUP:
        raise ConfigError(f"{key}: is a group of keys, expected one of {', '.join(_members(key))}")
    alternatives = functools.reduce(
        lambda group, name: group[name], key.split("."), _read_override(f"{key}=[{values}]")
    )
    if len(alternatives) < 2:
        raise ConfigError(f"{key}: got {len(alternatives)} values to compare ({values!r}), expected at least 2")
    found: dict[str, Config] = {}
    for alternative in alternatives:
        variant = with_values(config, {key: alternative}, f"over {over!r}")
        name = _file_name(_value(variant, key))
        if name in found:
            raise ConfigError(f"{key}: got the value {name} twice in {values!r}, expected values that differ")
        found[name] = variant
    return found


def with_values(config: Config, values: Mapping[str, Any], source: str) -> Config:
    """The configuration with other values at some dotted keys.

    Args:
        config: gives everything else.
        values: by dotted key.
        source: what named them, for the error.

    Raises:
        ConfigError: for an unknown key, or a value that does not fit it.

    Examples:
        >>> from art.train.config import Config, with_values
        >>> with_values(Config(), {"optim.epochs": 5}, "an example").optim.epochs
        5
    """
    changes = [(source, _nested(key, value)) for key, value in values.items()]
    return _merge([("the configuration", to_dict(config)), *changes])


def _nested(key: str, value: Any) -> dict[str, Any]:
    """The mapping of mappings in which ``value`` is at a dotted key."""
    first, _, rest = key.partition(".")
    return {first: _nested(rest, value) if rest else value}


def _file_name(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return re.sub(r"[^\w.+-]+", "_", text).strip("_")


def to_dict(config: Config) -> dict[str, Any]:
    """Plain nested containers, as YAML and JSON hold them.

    Examples:
        >>> from art.train.config import Config, to_dict
        >>> to_dict(Config())["optim"]["schedule"]
        'step'
    """
    return dataclasses.asdict(config)


def save_config(config: Config, path: Path) -> None:
    """Writes every value, so that the run depends on no default of a later version.

    Examples:
        >>> from pathlib import Path
        >>> from art.train.config import Config, load_config, save_config
        >>> save_config(Config(seed=3), Path("run.yaml"))
        >>> load_config("run.yaml").seed
        3
    """
    path.write_text(yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True), encoding="utf-8")


def _read_override(override: str) -> dict[str, Any]:
    try:
        content = OmegaConf.to_container(OmegaConf.from_dotlist([override]))
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(f"override {override!r}: the value cannot be read as YAML ({one_line(error)})") from error
    assert isinstance(content, dict)  # of from_dotlist
    return {str(key): value for key, value in content.items()}


def _merge(sources: Sequence[tuple[str, dict[str, Any]]]) -> Config:
    merged = OmegaConf.structured(Config)
    for source, values in sources:
        for key, value in _leaves(values):
            try:
                OmegaConf.update(merged, key, value, merge=value != {})  # options are added to; {} takes all away
            except OmegaConfBaseException as error:
                raise ConfigError(f"{key}: got {value!r}, expected {_KEYS[key]} (from {source})") from error
    try:
        config = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        raise ConfigError(f"config: {one_line(error)}") from error
    except (ValueError, TypeError) as error:  # ARTOptions looks at its own values
        raise ConfigError(f"model: {error}") from error
    assert isinstance(config, Config)
    _check_values(config)
    return config


def _leaves(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values; unknown keys stop here, because only here is it known what was written."""
    for name, value in values.items():
        key = f"{prefix}{name}"
        if key not in _KEYS:
            raise ConfigError(f"{key}: unknown key (got the value {value!r}); {_advice(key)}")
        if _KEYS[key] == _GROUP and isinstance(value, dict):
            yield from _leaves(value, f"{key}.")
        else:
            yield key, value


def _advice(key: str) -> str:
    def likeness(known: str) -> float:
        whole = difflib.SequenceMatcher(None, key, known).ratio()
        last = difflib.SequenceMatcher(None, key.rsplit(".", 1)[-1], known.rsplit(".", 1)[-1]).ratio()
        return max(whole, last) + 0.01 * whole  # of equal last parts, the one in the likelier group

    nearest = max(_KEYS, key=likeness)
    if likeness(nearest) >= 0.6:
        return f"the nearest known key is {nearest}, which expects {_KEYS[nearest]}"
    return f"expected one of {', '.join(_members(key.rpartition('.')[0]))}"


def _members(group: str) -> list[str]:
    return [name for name in _KEYS if name.rpartition(".")[0] == group]


_GROUP = "a mapping"


def _schema(kind: type, prefix: str = "") -> dict[str, str]:
    """Every dotted key, with what it expects in words."""
    keys: dict[str, str] = {}
    for name, hint in get_type_hints(kind).items():
        key = f"{prefix}{name}"
        if isinstance(hint, type) and dataclasses.is_dataclass(hint):
            keys |= {key: _GROUP, **_schema(hint, f"{key}.")}
        else:
            told = hint.__name__ if hint in (bool, int, float, str) else str(hint)
            keys[key] = told.replace("typing.", "").replace("NoneType", "null").replace("None", "null")
    return keys


_KEYS = _schema(Config)
_CHOICES = {
    "data.decoder": ("pyav", "torchcodec", "auto"),
    "kind": ("art", "backbone"),
    "precision": ("fp32", "bf16", "fp16"),
    "optim.optimizer": ("sgd", "adamw"),
    "optim.backbone_optimizer": (None, "sgd", "adamw"),
    "optim.schedule": ("step", "cosine"),
    "parallel.strategy": ("ddp", "fsdp"),
    "data.sampling": SAMPLINGS,
    "data.test_crops": (1, 3),
}
_AT_LEAST_ONE = (
    "eval_every", "log_every", "data.frame_size", "data.stride", "data.test_views", "optim.epochs", "optim.batch_size",
    "optim.accumulate", "optim.step_epochs", "log.histograms_every", "parallel.fsdp_block", "checkpoints.every_steps",
    "checkpoints.keep",
)  # fmt: skip
_NOT_NEGATIVE = (
    "seed", "data.workers", "data.rand_augment", "data.mixup", "data.cutmix", "optim.lr", "optim.backbone_lr",
    "optim.bank_lr", "optim.momentum", "optim.weight_decay",
    "optim.backbone_weight_decay", "optim.warmup_epochs",
)  # fmt: skip
_SHARES = (
    "data.max_bad_share", "data.flip", "data.brightness", "data.contrast", "data.saturation", "data.permute_channels",
    "data.mix_probability",
)  # fmt: skip


def _value(config: Config, key: str) -> Any:
    return functools.reduce(getattr, key.split("."), config)


def _check_values(config: Config) -> None:
    value = functools.partial(_value, config)

    def check(key: str, fits: bool, expected: str) -> None:
        if not fits:
            raise ConfigError(f"{key}: got {value(key)!r}, expected {expected}")

    for key, choices in _CHOICES.items():
        near = difflib.get_close_matches(str(value(key)), [c for c in choices if isinstance(c, str)], n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        told = ", ".join("null" if c is None else str(c) for c in choices)
        check(key, value(key) in choices, f"one of {told}{hint}")
    devices = "auto, cpu, cuda, cuda:<number> or mps"
    check("device", re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", config.device) is not None, devices)
    for key in _AT_LEAST_ONE:
        check(key, value(key) is None or value(key) >= 1, "at least 1")
    for key in _NOT_NEGATIVE:
        check(key, value(key) is None or 0 <= value(key) < math.inf, "a finite number, 0 or more")
    clip = config.optim.clip_grad_norm
    seconds = config.parallel.timeout
    check("parallel.timeout", 0 < seconds < math.inf, "a number of seconds above 0")
    check("optim.clip_grad_norm", clip is None or 0 < clip < math.inf, "a number above 0, or null for no clipping")
    for key in ("optim.layer_decay", "optim.ema"):
        check(key, value(key) is None or 0 < value(key) < 1, "a number above 0 and below 1, or null for none")
    _check_parts(config, check)
    for key in ("log.wandb", "log.mlflow", "log.mlflow_experiment"):
        check(key, value(key) is None or value(key).strip() != "", "a name, or null for none")
    steps = config.log.profile
    check("log.profile", steps is None or (len(steps) == 2 and 1 <= steps[0] <= steps[1]), "[first step, last step]")
    for key in _SHARES:
        check(key, 0 <= value(key) <= 1, "a share, 0 to 1")
    check("data.hue", 0 <= config.data.hue <= 180, "degrees, 0 to 180")
    check("data.rand_magnitude", 0 <= config.data.rand_magnitude <= 10, "a magnitude, 0 to 10")
    dense = config.data.sampling == "dense"
    check("data.stride", dense or config.data.stride == 1, "1 with data.sampling=sparse, which has no stride")
    even = config.optim.batch_size % 2 == 0
    check("optim.batch_size", even or not config.data.mixes, "an even number with data.mixup or data.cutmix")
    hard = config.model.weight_nce == 0 or config.kind != "art" or not config.data.mixes
    check("model.weight_nce", hard, "0 with data.mixup or data.cutmix: a mixed clip is of no one class")
    aspect = config.data.crop_aspect
    check("data.crop_aspect", len(aspect) == 2 and 0 < aspect[0] <= aspect[1] < math.inf, "[smallest, largest] ratios")
    scale = config.data.crop_scale
    check("data.crop_scale", len(scale) == 2 and 0 < scale[0] <= scale[1] <= 1, "[smallest, largest] shares in (0, 1]")
    check("output", config.output.strip() != "", "the path of the run folder")


def _check_parts(config: Config, check: Callable[[str, bool, str], None]) -> None:
    """Whether a batch can be taken in parts."""
    parts, clips = config.optim.accumulate, config.optim.batch_size
    check("optim.accumulate", clips % parts == 0, f"a divisor of optim.batch_size={clips}")
    pairs = parts == 1 or clips // parts % 2 == 0 or not config.data.mixes
    check(
        "optim.accumulate",
        pairs,
        f"parts of an even number of clips with data.mixup or data.cutmix, not {clips}/{parts}",
    )
    whole = parts == 1 or config.model.weight_nce == 0 or config.kind != "art"
    check("optim.accumulate", whole, "1 with model.weight_nce, which compares the tracklets of a whole batch")
