"""Training of several heads on stored features at once, and the selection of their settings."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
import yaml
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from art.backbones.base import Features
from art.data.dataset import seeded_generator
from art.data.datasets.base import suggest
from art.data.datasets.splits import split_clips
from art.data.features import FeatureBatch, FeatureSplit, JoinedFeatures, shape_of
from art.heads import FeatureShape, Head, HeadOutput, build_head
from art.train.runtime import fork_rng

#: Heads by name in tables: registered head and its options. Other registered heads are also accepted.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "art": ("art", {}),
    "art-text": ("art", {"queries": "text"}),
    "art-shuffled": ("art", {"queries": "shuffled"}),
    "attentive-4": ("attentive", {"depth": 4}),
}
KNN = "knn"


@dataclass(frozen=True)
class ProbeSettings:
    """How heads are trained.

    Attributes:
        heads: names of registered heads or of :data:`VARIANTS`; "knn" classifies the mean of the tokens by its nearest
            neighbors, without training.
        layers: whose tokens are concatenated along the token axis of each time step: "last", and those that were stored
            with ``art extract --layers``.
        lrs: learning rates of AdamW, of which one is selected for each head.
        seeds: number of seeds of the initial weights and the order of the clips.
        epochs: maximum number of epochs; the best one is selected. The learning rate follows a cosine over all of them.
        warmup_epochs: epochs of linear warm-up.
        batch_size: clips per step.
        weight_decay: of AdamW.
        holdout: fraction of the training clips, per class, on which settings are selected. Clips of one file stay
            together.
        time_position: "learned" or "none" for heads that have one; "auto" learns it if the backbone processes each
            frame separately.
        save: which heads are saved with their backbone as a run directory: "all", "best" on the held-out clips, or
            "none".
        options: further options by head name.
        seed: first seed.
        device: "auto", "cpu", "cuda", ….

    Raises:
        ValueError: a value is out of range.
    """

    heads: tuple[str, ...] = ("mean", "cls", "ep", "attentive", "art")
    layers: tuple[str, ...] = ("last",)
    lrs: tuple[float, ...] = (1e-3, 3e-3, 1e-2)
    seeds: int = 3
    epochs: int = 12
    warmup_epochs: float = 1.0
    batch_size: int = 32
    weight_decay: float = 0.05
    holdout: float = 0.2
    time_position: str = "auto"
    save: str = "all"
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    seed: int = 0
    device: str = "auto"

    def __post_init__(self) -> None:
        for name, least in (("seeds", 1), ("epochs", 1), ("batch_size", 2), ("seed", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected at least {least}")
        if not self.heads or len(set(self.heads)) != len(self.heads):
            raise ValueError(f"heads: got {', '.join(self.heads) or 'none'}, expected different names, at least one")
        if not self.layers or len(set(self.layers)) != len(self.layers):
            raise ValueError(f"layers: got {', '.join(self.layers) or 'none'}, expected different names, at least one")
        if not self.lrs or not all(0 < lr < math.inf for lr in self.lrs):
            raise ValueError(f"lrs: got {list(self.lrs)}, expected learning rates above 0")
        if self.time_position not in ("auto", "learned", "none"):
            raise ValueError(f"time_position: got {self.time_position!r}, expected 'auto', 'learned' or 'none'")
        if self.save not in ("all", "best", "none"):
            raise ValueError(f"save: got {self.save!r}, expected 'all', 'best' or 'none'")
        if not 0 < self.holdout < 1:
            raise ValueError(f"holdout: got {self.holdout}, expected a fraction above 0 and below 1")


@dataclass
class Candidate:
    """One head in training.

    Attributes:
        name: of the head in tables.
        lr: base learning rate.
        seed: of its initial weights.
        epochs: number of epochs after which its training ends.
        accuracy: on the held-out clips, after each epoch.
        loss: cross-entropy on them.
        seconds: spent on training this head; where steps are shared, an equal part of their time.
    """

    name: str
    lr: float
    seed: int
    epochs: int
    head: Head
    optimizer: torch.optim.Optimizer
    accuracy: list[float] = field(default_factory=list)
    loss: list[float] = field(default_factory=list)
    seconds: float = 0.0


def head_arguments(name: str, manifest: Mapping[str, Any], settings: ProbeSettings) -> tuple[str, dict[str, Any]]:
    """Return the registered name and the options of a head by its name in tables."""
    framewise = manifest["backbone"]["framewise"]
    learned_time = settings.time_position == "learned" or (settings.time_position == "auto" and framewise)
    registered, options = VARIANTS.get(name, (name, {}))
    options = {**options, **settings.options.get(name, {})}
    if learned_time and name not in ("mean", "cls"):
        options.setdefault("time_position", "learned")
    return registered, options


def make_head(name: str, manifest: Mapping[str, Any], settings: ProbeSettings, seed: int) -> Head:
    """Build a head for features with the weights of a seed; does not change the global random generators."""
    shape = FeatureShape(*shape_of(manifest, settings.layers))
    registered, options = head_arguments(name, manifest, settings)
    with fork_rng():
        torch.manual_seed(seed)
        return build_head(registered, shape, manifest["class_names"], **options)


def holdout_mask(labels: Int64[Tensor, " n"], groups: Sequence[str], fraction: float, seed: int) -> Bool[Tensor, " n"]:
    """Choose held-out clips: about ``fraction`` of each class, and all or none of the clips of a group.

    See :func:`art.data.datasets.splits.split_clips`.

    Args:
        labels: of the clips.
        groups: of each clip, such as a person or the file that it was cut from.
        fraction: of the clips to choose.
        seed: of the choice.

    Raises:
        ValueError: No clip can be chosen such that its class keeps clips.
    """
    names = [str(number) for number in range(len(labels))]
    parts = split_clips(names, labels.tolist(), groups, seed=seed, test_fraction=fraction)
    mask = torch.tensor([part == "test" for part in parts])
    if not bool(mask.any()):
        raise ValueError(
            f"holdout: {fraction:g} of {len(labels)} clips in {len(set(groups))} groups cannot be held out such that "
            "every class keeps clips; add clips"
        )
    return mask


def make_candidate(
    name: str, manifest: Mapping[str, Any], settings: ProbeSettings, lr: float, seed: int, epochs: int,
    device: torch.device,
) -> Candidate:  # fmt: skip
    """Build a head and its optimizer; weight decay applies to matrices only."""
    head = make_head(name, manifest, settings, seed).to(device)
    trained = [parameter for parameter in head.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return Candidate(name, lr, seed, epochs, head, torch.optim.AdamW(groups, lr=lr, fused=True))


def fit(
    candidates: Sequence[Candidate],
    split: FeatureSplit | JoinedFeatures,
    settings: ProbeSettings,
    subset: Bool[Tensor, " n"],
    device: torch.device,
    validation: Bool[Tensor, " n"] | None = None,
) -> None:
    """Train all candidates in the same batches; with ``validation``, append accuracy and loss after each epoch."""
    with fork_rng():
        _fit(candidates, split, settings, subset, device, validation)


def _fit(
    candidates: Sequence[Candidate],
    split: FeatureSplit | JoinedFeatures,
    settings: ProbeSettings,
    subset: Bool[Tensor, " n"],
    device: torch.device,
    validation: Bool[Tensor, " n"] | None,
) -> None:
    steps_per_epoch = -(-int(subset.sum()) // settings.batch_size)
    total, warmup = settings.epochs * steps_per_epoch, settings.warmup_epochs * steps_per_epoch
    step = 0
    for epoch in range(max((each.epochs for each in candidates), default=0)):
        running = [each for each in candidates if each.epochs > epoch]
        groups = _groups(running)
        generator = seeded_generator(settings.seed, epoch)
        for batch in _full_batches(split.batches(settings.batch_size, generator=generator, subset=subset)):
            step += 1
            factor = (
                min(1.0, step / warmup) if step < warmup else 0.5 * (1 + math.cos(math.pi * min(1.0, step / total)))
            )
            batch = _to(batch, device)
            for group in groups:
                begun = time.perf_counter()
                _train_step(group, batch, factor, seed=step)
                for each in group:
                    each.seconds += (time.perf_counter() - begun) / len(group)
        if validation is not None:
            for each, (logits, labels) in zip(
                running, predict(running, split, settings, device, validation), strict=True
            ):
                each.accuracy.append(float((logits.argmax(1) == labels).float().mean()))
                each.loss.append(float(F.cross_entropy(logits, labels)))


def _groups(candidates: Sequence[Candidate]) -> list[list[Candidate]]:
    """Group candidates whose heads share work; each other candidate is a group alone."""
    groups: dict[Any, list[Candidate]] = {}
    for each in candidates:
        shared = each.head.forward_together is not Head.forward_together
        groups.setdefault(each.name if shared else id(each), []).append(each)
    return list(groups.values())


def _forward(group: Sequence[Candidate], features: Features) -> list[HeadOutput]:
    return group[0].head.forward_together([each.head for each in group], features)


def _train_step(group: Sequence[Candidate], batch: FeatureBatch, factor: float, seed: int) -> None:
    """Train candidates by one step; the gradient of the sum of their losses has the gradient of each."""
    for each in group:
        each.head.train()
        each.optimizer.zero_grad(set_to_none=True)
    torch.manual_seed(group[0].seed * 1_000_003 + seed)  # dropout does not depend on the other heads
    outputs = _forward(group, batch.features)
    losses = [each.head.loss(output, batch.labels) for each, output in zip(group, outputs, strict=True)]
    torch.stack(losses).sum().backward()
    for each in group:
        torch.nn.utils.clip_grad_norm_(each.head.parameters(), 5.0)
        for parameters in each.optimizer.param_groups:
            parameters["lr"] = each.lr * factor
        each.optimizer.step()
        each.head.after_step()


def _full_batches(batches: Iterable[FeatureBatch]) -> Iterable[FeatureBatch]:
    """Skip batches of one clip, which batch normalization cannot train on."""
    return (batch for batch in batches if len(batch.labels) > 1)


def _to(batch: FeatureBatch, device: torch.device) -> FeatureBatch:
    tokens, class_token, grid = batch.features
    moved = Features(tokens.to(device, non_blocking=True), class_token.to(device, non_blocking=True), grid)
    return FeatureBatch(moved, batch.labels.to(device), batch.clips)


@torch.inference_mode()
def predict(
    candidates: Sequence[Candidate],
    split: FeatureSplit | JoinedFeatures,
    settings: ProbeSettings,
    device: torch.device,
    subset: Bool[Tensor, " n"] | None = None,
    *,
    reverse: bool = False,
) -> list[tuple[Float[Tensor, "n y"], Int64[Tensor, " n"]]]:
    """Return logits and labels for each candidate, on the CPU; ``reverse`` reverses the order of frames."""
    logits: dict[int, list[Tensor]] = {id(each): [] for each in candidates}
    labels = []
    for each in candidates:
        each.head.eval()
    for batch in split.batches(settings.batch_size, subset=subset):
        batch = _to(batch, device)
        features = batch.features
        if reverse:
            features = features._replace(tokens=features.tokens.flip(1))
        for group in _groups(candidates):
            for each, output in zip(group, _forward(group, features), strict=True):
                logits[id(each)].append(output.logits.float().cpu())
        labels.append(batch.labels.cpu())
    return [(torch.cat(logits[id(each)]), torch.cat(labels)) for each in candidates]


class Selection(NamedTuple):
    """Settings of a head with the best mean accuracy over seeds on the held-out clips, and that accuracy and loss."""

    lr: float
    epochs: int
    accuracy: float
    loss: float

    @property
    def rank(self) -> tuple[float, float]:
        """Larger is better. The loss distinguishes settings that classify few held-out clips equally well."""
        return self.accuracy, -self.loss


def select(candidates: Sequence[Candidate]) -> Selection:
    """Return learning rate and number of epochs with the best mean accuracy over seeds; if equal, the lowest loss."""
    found = []
    for lr in dict.fromkeys(each.lr for each in candidates):
        own = [each for each in candidates if each.lr == lr]
        means = (np.mean([getattr(each, name) for each in own], axis=0).tolist() for name in ("accuracy", "loss"))
        found += [Selection(lr, epoch, *values) for epoch, values in enumerate(zip(*means, strict=True), start=1)]
    return max(found, key=lambda each: each.rank)


def parse_settings(overrides: Sequence[str], defaults: ProbeSettings | None = None) -> ProbeSettings:
    """Parse ``key=value`` settings of the command line; ``HEAD.option=value`` is an option of a head.

    Raises:
        ValueError: A key is unknown, or a value cannot be converted.
    """
    defaults = defaults or ProbeSettings()
    known = {item.name: item for item in fields(ProbeSettings) if item.name != "options"}
    values: dict[str, Any] = {}
    options: dict[str, dict[str, Any]] = {}
    for override in overrides:
        key, _, text = override.partition("=")
        head, dot, option = key.rpartition(".")
        if dot:
            options.setdefault(head, {})[option] = yaml.safe_load(text)
            continue
        if key not in known:
            raise ValueError(f"{key}: unknown setting{suggest(key, [*known])}")
        values[key] = _convert(key, text, getattr(defaults, key))
    settings = replace(defaults, **values, options=options)
    unused = sorted(set(options) - set(settings.heads))
    if unused:
        raise ValueError(f"{unused[0]}: has options, but is not in heads={','.join(settings.heads)}")
    return settings


def _convert(key: str, text: str, default: Any) -> Any:
    """Convert a value to the type of the default; values of a tuple are separated by commas."""
    several = isinstance(default, tuple)
    convert = type(default[0] if several else default)
    try:
        return tuple(convert(part) for part in text.split(",")) if several else convert(text)
    except ValueError:
        kind = {int: "a whole number", float: "a number"}[convert]
        expected = f"{kind}, or several separated by commas" if several else kind
        raise ValueError(f"{key}: got {text!r}, expected {expected}") from None
