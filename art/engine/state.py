"""What a training step changes, in one place, so that it can be saved and continued as if it had never stopped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from art.pretrained import VideoClassifier, build_model, load_model

from .checkpoints import CheckpointError, load_training_state, save_checkpoint
from .config import Config, ConfigError
from .metrics import check_same_classes
from .optimizers import build_optimizers
from .randomness import random_state, restore_random_state

_FORMAT = 1


@dataclass
class Position:
    """How far a training has come.

    Attributes:
        epoch: epochs that are done, with their evaluation; also the number, from 0, of the epoch under way.
        batch: batches of the epoch under way that are done.
        step: optimizer steps in all.
        clips: clips in those batches of the epoch under way.
        correct: how many of them the model had right.
        loss_sum: their total loss, summed over clips.
        epoch_seconds: wall time of the epoch's training so far.
        seconds: wall time of the run, over every stretch of it.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    clips: int = 0
    correct: int = 0
    loss_sum: float = 0.0
    epoch_seconds: float = 0.0
    seconds: float = 0.0

    def next_epoch(self) -> None:
        """Moves to the start of the next epoch."""
        self.epoch += 1
        self.batch = self.clips = self.correct = 0
        self.loss_sum = self.epoch_seconds = 0.0


@dataclass
class TrainingState:
    """Model, optimizers, loss scaler and position; the learning rate is a function of the position."""

    model: VideoClassifier
    optimizers: list[torch.optim.Optimizer]
    scaler: torch.amp.GradScaler
    position: Position

    @classmethod
    def fresh(
        cls, config: Config, class_names: Sequence[str], device: torch.device, prompts: Sequence[str] | None = None
    ) -> TrainingState:
        """At the start. The global generators decide the initial weights: seed them first. ``prompts`` is the text of
        each class; None: its name.

        Raises:
            ConfigError: if no such model can be built.
        """
        try:
            model = build_model(config.kind, class_names, config.model, prompts).to(device)
        except (ValueError, TypeError) as error:
            raise ConfigError(f"model: {error}") from error
        return cls._around(model, config, device)

    @classmethod
    def continued(cls, folder: Path, config: Config, class_names: Sequence[str], device: torch.device) -> TrainingState:
        """As it was when :meth:`save` wrote ``folder``. The global generators follow with :meth:`restore_randomness`.

        Raises:
            CheckpointError: if the folder does not hold a training state, or it fits another configuration.
            ClassMismatch: if it was trained on other classes.
        """
        saved = load_training_state(folder)
        if saved.get("format") != _FORMAT:
            raise CheckpointError(f"{folder}: training state of format {saved.get('format')!r}, expected {_FORMAT}")
        model = load_model(folder).to(device)
        check_same_classes(model.class_names, class_names)
        state = cls._around(model, config, device)
        try:
            for optimizer, values in zip(state.optimizers, saved["optimizers"], strict=True):
                optimizer.load_state_dict(values)
        except ValueError as error:
            raise CheckpointError(f"{folder}: its optimizers do not fit the configuration ({error})") from error
        state.scaler.load_state_dict(saved["scaler"])
        state.position = Position(**saved["position"])
        if state.position.epoch >= config.optim.epochs:
            raise ConfigError(
                f"optim.epochs: got {config.optim.epochs}, but {folder} is in epoch {state.position.epoch + 1} already"
            )
        state._random_state = saved["random"]
        return state

    @classmethod
    def _around(cls, model: VideoClassifier, config: Config, device: torch.device) -> TrainingState:
        model.sampling = config.data.frame_sampling
        scaler = torch.amp.GradScaler(device.type, enabled=config.precision == "fp16")
        return cls(
            model,
            build_optimizers(model.parameter_groups(), config.optim, model.backbone.parameters_by_depth()),
            scaler,
            Position(),
        )

    def __post_init__(self) -> None:
        self._random_state: dict[str, Any] | None = None

    def restore_randomness(self) -> None:
        """Puts the global generators where they were at the save; nothing for a fresh state."""
        if self._random_state is not None:
            restore_random_state(self._random_state)
            self._random_state = None

    def save(self, folder: Path) -> None:
        """Writes a checkpoint: the model for anyone, the training state beside it."""
        save_checkpoint(
            folder,
            self.model,
            {
                "format": _FORMAT,
                "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
                "scaler": self.scaler.state_dict(),
                "position": asdict(self.position),
                "random": random_state(),
            },
        )
