"""Which observers a configuration asks for."""

from __future__ import annotations

import json

from art.train.config import Config, LogConfig, to_dict
from art.train.logging import mlflow, wandb
from art.train.logging.interface import Observer
from art.train.logging.tensorboard import TensorBoard
from art.train.run_dir import RunFolder


def require_observers(log: LogConfig) -> None:
    """Whether the libraries are installed that the configuration asks for.

    Raises:
        ModuleNotFoundError: which one is not, and how to get it.
    """
    if log.wandb is not None:
        wandb.library()
    if log.mlflow is not None:
        mlflow.library()


def open_observers(config: Config, run: RunFolder, *, step: int) -> list[Observer]:
    """The observers of a run, in a folder that has been begun. Those with a run of their own elsewhere go on with it;
    ``observers.json`` in the folder says which.

    Args:
        config: of the run.
        run: its folder.
        step: steps behind the state that training starts from.
    """
    log, observers = config.log, list[Observer]()
    if log.tensorboard:
        observers.append(TensorBoard(run.tensorboard, step=step))
    identities: dict[str, str] = json.loads(run.observers.read_text()) if run.observers.is_file() else {}
    if log.wandb is not None:
        board = wandb.WeightsAndBiases(log.wandb, run.path, to_dict(config), identities.get("wandb"))
        identities["wandb"] = board.identity
        observers.append(board)
    if log.mlflow is not None:
        server = mlflow.MLflow(log.mlflow, log.mlflow_experiment, run.path, to_dict(config), identities.get("mlflow"))
        identities["mlflow"] = server.identity
        observers.append(server)
    if identities:
        run.observers.write_text(json.dumps(identities, indent=2) + "\n")
    return observers
