"""The state that a training step changes, saved and restored so that a resumed run continues bit for bit."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from art.eval.metrics import check_same_classes
from art.model.loading import build_model, load_model
from art.model.pretrained import VideoClassifier
from art.train.checkpoint import (
    TRAINING_STATE,
    CheckpointError,
    CheckpointWriter,
    load_tensors,
    load_training_state,
    saved_tensors,
)
from art.train.config import Config, ConfigError
from art.train.distributed import DistContext
from art.train.optim import EMA, build_optimizers
from art.train.parallel import broadcast_buffers, parallelize
from art.train.runtime import get_rng_state, rank_seed, seed_everything, set_rng_state

#: Version of the saved training state. Its keys and tensor names ("model.*", "average.*", "optimizer.*") are fixed.
_FORMAT = 2


@dataclass
class Position:
    """Progress of a training run. Field names are keys of the saved state.

    Attributes:
        epoch: completed epochs, evaluation included; the index of the current epoch, from 0.
        batch: completed batches of the current epoch.
        step: optimizer steps of the run.
        clips: clips in the completed batches of the current epoch.
        correct: how many of these clips were classified correctly.
        loss_sum: sum of their total losses.
        epoch_seconds: training time of the current epoch.
        seconds: wall time of the run, including earlier sessions.
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
        """Move to the start of the next epoch."""
        self.epoch += 1
        self.batch = self.clips = self.correct = 0
        self.loss_sum = self.epoch_seconds = 0.0


@dataclass
class TrainingState:
    """Model, optimizers, loss scaler and position. The learning rate is a function of the position.

    Attributes:
        model: the classifier; if it is sharded, only ``model_with_loss`` may be called.
        model_with_loss: the wrapped model and its loss, see :func:`art.train.parallel.parallelize`.
        optimizers: optimizers of the model's parameters.
        scaler: loss scaler for "fp16".
        dist_ctx: the ranks.
        position: progress.
        ema: moving average of the weights if ``optim.ema`` is set; it is evaluated and saved for inference.
    """

    model: VideoClassifier
    model_with_loss: nn.Module
    optimizers: list[torch.optim.Optimizer]
    scaler: torch.amp.GradScaler
    dist_ctx: DistContext
    position: Position = field(default_factory=Position)
    ema: EMA | None = None

    def __post_init__(self) -> None:
        self._rng_state: dict[str, Any] | None = None

    @classmethod
    def create(
        cls, config: Config, class_names: Sequence[str], dist_ctx: DistContext, prompts: Sequence[str] | None = None
    ) -> TrainingState:
        """Create the state of a new run. Seed the global generators first: they determine the initial weights.

        Args:
            config: configuration of the run.
            class_names: class names in label order.
            dist_ctx: the ranks.
            prompts: text of each class; None: the class names.

        Raises:
            ConfigError: the model options are invalid.
        """
        with dist_ctx.sync_errors():
            try:
                model = build_model(config.kind, class_names, config.model, prompts).to(dist_ctx.device)
            except (ValueError, TypeError) as error:
                raise ConfigError(f"model: {' '.join(str(error).split())}") from error
        if not dist_ctx.is_main:  # rank 0 keeps the generators that created the weights, like a single process
            seed_everything(rank_seed(config.seed, dist_ctx.rank))
        return cls._build(model, config, dist_ctx)

    @classmethod
    def resume(
        cls, directory: Path, config: Config, class_names: Sequence[str], dist_ctx: DistContext
    ) -> TrainingState:
        """Load the state that :meth:`save` wrote, with any number of ranks.

        The global generators are restored later, by :meth:`restore_rng`.

        Raises:
            CheckpointError: no training state, or it does not match the configuration.
            ClassMismatch: it was trained on different classes.
        """
        with dist_ctx.sync_errors():
            saved = load_training_state(directory)
            if saved.get("format") != _FORMAT:
                raise CheckpointError(
                    f"{directory}: training state of format {saved.get('format')!r}, expected {_FORMAT}"
                )
            model = load_model(directory).to(dist_ctx.device)
            check_same_classes(model.class_names, class_names)
        state = cls._build(model, config, dist_ctx)
        with dist_ctx.sync_errors():
            tensors = state._tensors_to_load(directory)
        load_tensors(directory, tensors, dist_ctx)
        try:
            state.scaler.load_state_dict(saved["scaler"])
            state.position = Position(**saved["position"])
            random_states = list(saved["random"])
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise CheckpointError(
                f"{directory / TRAINING_STATE}: lacks values of a training state ({error})"
            ) from error
        if state.ema is not None:
            state.ema.steps = state.position.step
        if state.position.epoch >= config.optim.epochs:
            raise ConfigError(
                f"optim.epochs: got {config.optim.epochs}, but {directory} is already in epoch "
                f"{state.position.epoch + 1}"
            )
        if dist_ctx.rank < len(random_states):
            state._rng_state = random_states[dist_ctx.rank]
        else:  # there were fewer ranks
            seed_everything(rank_seed(config.seed, dist_ctx.rank, state.position.step))
        return state

    @classmethod
    def _build(cls, model: VideoClassifier, config: Config, dist_ctx: DistContext) -> TrainingState:
        model.sampling = config.data.frame_sampling
        model_with_loss = parallelize(model, dist_ctx, config.parallel)
        optimizers = build_optimizers(model.parameter_groups(), config.optim, model.backbone.parameters_by_depth())
        scaler = torch.amp.GradScaler(dist_ctx.device.type, enabled=config.precision == "fp16")
        if config.compile:
            model_with_loss.compile()  # in place: parameter names do not change
        ema = None if config.optim.ema is None else EMA(model, config.optim.ema)
        return cls(model, model_with_loss, optimizers, scaler, dist_ctx, ema=ema)

    def restore_rng(self) -> None:
        """Restore the global generators to their saved states; does nothing for a new run."""
        if self._rng_state is not None:
            set_rng_state(self._rng_state)
            self._rng_state = None

    def after_optimizer_step(self) -> None:
        """Update the semantics bank and the EMA."""
        self.model.update_bank()
        if self.ema is not None:
            self.ema.update(self.model)

    def broadcast_buffers(self) -> None:
        """Copy rank 0's running batch norm statistics to all ranks if they differ."""
        broadcast_buffers(self.model, self.dist_ctx, () if self.ema is None else self.ema.buffers(self.model))

    def eval_weights(self) -> AbstractContextManager[None]:
        """Return a context in which the model has the weights to evaluate: the EMA if there is one."""
        return nullcontext() if self.ema is None else self.ema.swap_parameters(self.model)

    def save(self, writer: CheckpointWriter) -> None:
        """Write a checkpoint: the model for inference and the training state. A collective operation."""
        self.broadcast_buffers()
        weights = self.full_weights(copy=writer.asynchronous)
        values = {
            "format": _FORMAT,
            "step": self.position.step,
            "scaler": self.scaler.state_dict(),
            "position": asdict(self.position),
            "random": self.dist_ctx.gather_objects(get_rng_state()),
        }
        model = self.model
        writer.save(lambda directory: model.save_pretrained(directory, weights), values, self.tensors())

    def tensors(self) -> dict[str, Tensor]:
        """Return every tensor of the state by a name that does not depend on the number of ranks."""
        tensors = self._weights()
        for name, state in self._optimizer_states().items():
            tensors |= {f"{name}.{key}": value for key, value in state.items() if isinstance(value, Tensor)}
        return tensors

    @torch.no_grad()
    def non_finite(self) -> list[str]:
        """Return the names of tensors of the state that are not finite, on any rank. A collective operation.

        Weights and optimizer states count as not finite if their norm overflows: the next step would. Buffers may
        contain -inf. Read from the device once, because it is called before each save and not in each step.
        """
        buffers = {f"{prefix}.{name}" for name, _ in self.model.named_buffers() for prefix in ("model", "average")}
        checks: dict[str, Tensor] = {}
        for name, value in self.tensors().items():
            local = value.to_local() if isinstance(value, DTensor) else value
            if local.is_floating_point() and local.numel() and local.device.type == self.dist_ctx.device.type:
                norm = local.amax() if name in buffers else torch.linalg.vector_norm(local, dtype=torch.float32)
                checks[name] = norm.float()
        finite = torch.stack(list(checks.values())).isfinite().tolist()
        own = [name for name, is_finite in zip(checks, finite, strict=True) if not is_finite]
        return list(dict.fromkeys(name for names in self.dist_ctx.gather_objects(own) for name in names))

    def _weights(self) -> dict[str, Tensor]:
        weights = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        return weights | ({} if self.ema is None else {f"average.{k}": v for k, v in self.ema.values.items()})

    def full_weights(self, *, copy: bool) -> dict[str, Tensor]:
        """Gather the unsharded weights for inference on the CPU of rank 0. A collective operation.

        Args:
            copy: never return the model's own memory, which the next step modifies.
        """
        weights: dict[str, Tensor] = {}
        for name, value in (self.model.state_dict() if self.ema is None else self.ema.values).items():
            full = value.full_tensor() if hasattr(value, "full_tensor") else value  # DTensor
            if self.dist_ctx.is_main:
                weights[name] = full.detach().to("cpu", copy=copy)
        return weights

    def _optimizer_states(self) -> dict[str, dict[str, Any]]:
        """Return the optimizer state of each trained parameter by name; missing states are created empty."""
        owner = {id(p): optimizer for optimizer in self.optimizers for g in optimizer.param_groups for p in g["params"]}
        states = {
            f"optimizer.{name}": owner[id(parameter)].state[parameter]
            for name, parameter in self.model.named_parameters()
            if id(parameter) in owner
        }
        assert len(states) == len(owner)  # fails while FSDP has replaced the parameters by gathered ones
        return states

    def _tensors_to_load(self, directory: Path) -> dict[str, Tensor]:
        """Return an allocated tensor of the state for each tensor saved in ``directory``."""
        states, parameters = self._optimizer_states(), dict(self.model.named_parameters())
        tensors = self._weights()
        for saved, shape in saved_tensors(directory).items():
            if saved in tensors:
                continue
            name, _, key = saved.rpartition(".")
            if name not in states:
                raise CheckpointError(f"{directory}: the configuration does not match the saved state (it has {saved})")
            parameter = parameters[name.removeprefix("optimizer.")]
            states[name][key] = torch.zeros(shape) if key == "step" else torch.zeros_like(parameter)
            tensors[saved] = states[name][key]
        return tensors
