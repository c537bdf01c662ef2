"""What a training step changes, in one place, so that it can be saved and continued as if it had never stopped."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from art.eval.metrics import check_same_classes
from art.model.pretrained import VideoClassifier, build_model, load_model
from art.train.checkpoint import CheckpointError, CheckpointWriter, load_tensors, load_training_state, saved_tensors
from art.train.config import Config, ConfigError
from art.train.distributed import Ranks
from art.train.ema import WeightAverage
from art.train.optim import build_optimizers
from art.train.parallel import parallelized, share_buffers
from art.train.randomness import random_state, restore_random_state, seed_everything, seed_of_rank

_FORMAT = 2


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
    """Model, optimizers, loss scaler and position; the learning rate is a function of the position.

    Attributes:
        model: the classifier; on several ranks it may be sharded, and then only ``objective`` can be called.
        objective: the model and its loss, on all ranks: see :func:`.parallel.parallelized`.
        optimizers: of the model's parameters.
        scaler: of the loss, for "fp16".
        ranks: who trains.
        position: how far it has come.
        average: of the model's weights, where ``optim.ema`` asks for one; it is what is evaluated and saved for use.
    """

    model: VideoClassifier
    objective: nn.Module
    optimizers: list[torch.optim.Optimizer]
    scaler: torch.amp.GradScaler
    ranks: Ranks
    position: Position = field(default_factory=Position)
    average: WeightAverage | None = None

    @classmethod
    def fresh(
        cls, config: Config, class_names: Sequence[str], ranks: Ranks, prompts: Sequence[str] | None = None
    ) -> TrainingState:
        """At the start. The global generators decide the initial weights: seed them first. ``prompts`` is the text of
        each class; None: its name.

        Raises:
            ConfigError: if no such model can be built.
        """
        with ranks.together():
            try:
                model = build_model(config.kind, class_names, config.model, prompts).to(ranks.device)
            except (ValueError, TypeError) as error:
                raise ConfigError(f"model: {error}") from error
        if not ranks.is_main:  # which goes on with the generators that made the weights, as a process alone does
            seed_everything(seed_of_rank(config.seed, ranks.rank))
        return cls._around(model, config, ranks)

    @classmethod
    def continued(cls, folder: Path, config: Config, class_names: Sequence[str], ranks: Ranks) -> TrainingState:
        """As it was when :meth:`save` wrote ``folder``, perhaps with more or fewer ranks. The global generators follow
        with :meth:`restore_randomness`.

        Raises:
            CheckpointError: if the folder does not hold a training state, or it fits another configuration.
            ClassMismatch: if it was trained on other classes.
        """
        with ranks.together():
            saved = load_training_state(folder)
            if saved.get("format") != _FORMAT:
                raise CheckpointError(f"{folder}: training state of format {saved.get('format')!r}, expected {_FORMAT}")
            model = load_model(folder).to(ranks.device)
            check_same_classes(model.class_names, class_names)
        state = cls._around(model, config, ranks)
        with ranks.together():
            tensors = state._awaited_tensors(folder)
        load_tensors(folder, tensors, ranks)
        state.scaler.load_state_dict(saved["scaler"])
        state.position = Position(**saved["position"])
        if state.average is not None:
            state.average.steps = state.position.step
        if state.position.epoch >= config.optim.epochs:
            raise ConfigError(
                f"optim.epochs: got {config.optim.epochs}, but {folder} is in epoch {state.position.epoch + 1} already"
            )
        if ranks.rank < len(saved["random"]):
            state._random_state = saved["random"][ranks.rank]
        else:  # a rank that was not there
            seed_everything(seed_of_rank(config.seed, ranks.rank, state.position.step))
        return state

    @classmethod
    def _around(cls, model: VideoClassifier, config: Config, ranks: Ranks) -> TrainingState:
        model.sampling = config.data.frame_sampling
        objective = parallelized(model, ranks, config.parallel)
        optimizers = build_optimizers(model.parameter_groups(), config.optim, model.backbone.parameters_by_depth())
        scaler = torch.amp.GradScaler(ranks.device.type, enabled=config.precision == "fp16")
        if config.compile:
            objective.compile()  # in place: the names of the weights stay
        average = None if config.optim.ema is None else WeightAverage(model, config.optim.ema)
        return cls(model, objective, optimizers, scaler, ranks, average=average)

    def __post_init__(self) -> None:
        self._random_state: dict[str, Any] | None = None

    def restore_randomness(self) -> None:
        """Puts the global generators where they were at the save; nothing for a fresh state."""
        if self._random_state is not None:
            restore_random_state(self._random_state)
            self._random_state = None

    def after_step(self) -> None:
        """What follows the weights does, after every optimizer step."""
        self.model.after_step()
        if self.average is not None:
            self.average.update(self.model)

    def share_buffers(self) -> None:
        """Gives all ranks the running statistics of rank 0 where each normalises alone."""
        share_buffers(self.model, self.ranks, () if self.average is None else self.average.buffers(self.model))

    def evaluated(self) -> AbstractContextManager[None]:
        """In its block the model is as it is evaluated and saved for use: with the average, where there is one."""
        return nullcontext() if self.average is None else self.average.in_place_of(self.model)

    def save(self, writer: CheckpointWriter) -> None:
        """Writes a checkpoint: the model for anyone, the training state beside it. All ranks call this."""
        self.share_buffers()
        weights = self.whole_weights(copied=writer.asynchronous)
        values = {
            "format": _FORMAT,
            "step": self.position.step,
            "scaler": self.scaler.state_dict(),
            "position": asdict(self.position),
            "random": self.ranks.gather_objects(random_state()),
        }
        model = self.model
        writer.save(lambda folder: model.save_pretrained(folder, weights), values, self.tensors())

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor that a training goes on from, by a name that depends on no number of ranks."""
        named = self._weights()
        for name, state in self._optimizer_states().items():
            named |= {f"{name}.{key}": value for key, value in state.items() if isinstance(value, Tensor)}
        return named

    def _weights(self) -> dict[str, Tensor]:
        """The model's own, and their average where there is one."""
        named = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        return named | ({} if self.average is None else {f"average.{k}": v for k, v in self.average.values.items()})

    def whole_weights(self, *, copied: bool) -> dict[str, Tensor]:
        """The weights for use on the CPU, put together of the shards of all ranks, which call this; rank 0 gets them.

        Args:
            copied: never the model's own memory, which the next step changes.
        """
        whole: dict[str, Tensor] = {}
        weights = self.model.state_dict() if self.average is None else self.average.values
        for name, value in weights.items():
            full = value.full_tensor() if hasattr(value, "full_tensor") else value  # of a DTensor
            if self.ranks.is_main:
                whole[name] = full.detach().to("cpu", copy=copied)
        return whole

    def _optimizer_states(self) -> dict[str, dict[str, Any]]:
        """What the optimizers keep for each trained parameter, by its name; an entry is made where there is none."""
        owner = {id(p): optimizer for optimizer in self.optimizers for g in optimizer.param_groups for p in g["params"]}
        states = {
            f"optimizer.{name}": owner[id(parameter)].state[parameter]
            for name, parameter in self.model.named_parameters()
            if id(parameter) in owner
        }
        assert len(states) == len(owner)  # FSDP has other parameters while they are put together
        return states

    def _awaited_tensors(self, folder: Path) -> dict[str, Tensor]:
        """Room for all that is saved in ``folder``, where :meth:`tensors` has it."""
        states, parameters = self._optimizer_states(), dict(self.model.named_parameters())
        room = self._weights()
        for saved, shape in saved_tensors(folder).items():
            name, _, key = saved.rpartition(".")
            if saved in room:
                continue
            if name not in states:
                raise CheckpointError(f"{folder}: its optimizers do not fit the configuration (it has {saved})")
            parameter = parameters[name.removeprefix("optimizer.")]
            states[name][key] = torch.zeros(shape) if key == "step" else torch.zeros_like(parameter)
            room[saved] = states[name][key]
        return room
