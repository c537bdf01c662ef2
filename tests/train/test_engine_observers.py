"""Observers beside modules that record the calls of the real libraries."""

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from art.train.config import load_config, save_config
from art.train.logging import open_observers, require_observers
from art.train.logging.run_log import NoLog, RunLog
from art.train.run_dir import RunFolder

NUMBERS = {"loss/total": 1.5, "clips_per_second": 3.0}
HISTOGRAM = {"similarity_own_class": np.array([0.1, 0.2], dtype=np.float32)}


@pytest.fixture
def run(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    return folder


@pytest.fixture
def wandb(monkeypatch):
    """As much of wandb as is used; ``runs`` has everything that it was told."""
    runs = []

    class Run:
        def __init__(self, options):
            self.options, self.logged, self.metrics, self.exit_code = options, [], [], None
            self.id = options["id"] or f"run{len(runs)}"
            runs.append(self)

        def define_metric(self, name, step_metric):
            self.metrics.append((name, step_metric))

        def log(self, values):
            self.logged.append(values)

        def finish(self, exit_code):
            self.exit_code = exit_code

    module = SimpleNamespace(
        runs=runs, init=lambda **options: Run(options), Histogram=lambda values: ("histogram", list(values))
    )
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


@pytest.fixture
def mlflow(monkeypatch):
    """As much of MLflow as is used; ``clients`` has everything that it was told."""
    clients, experiments = [], {}

    class Client:
        def __init__(self, tracking_uri):
            self.uri, self.params, self.metrics, self.artifacts, self.status = tracking_uri, {}, [], [], None
            self.batches = []
            clients.append(self)

        def get_experiment_by_name(self, name):
            known = experiments.get(name)
            return known and SimpleNamespace(experiment_id=known)

        def create_experiment(self, name):
            return experiments.setdefault(name, f"e{len(experiments)}")

        def create_run(self, experiment_id, run_name):
            self.run = (experiment_id, run_name)
            return SimpleNamespace(info=SimpleNamespace(run_id=f"r{len(clients)}"))

        def update_run(self, run_id, status):
            self.status = (run_id, status)

        def log_artifact(self, run_id, path):
            self.artifacts.append((run_id, path))

        def log_batch(self, run_id, metrics=(), params=()):
            self.batches.append(len(params))
            self.metrics += [(run_id, *metric) for metric in metrics]
            self.params |= dict(params)

        def set_terminated(self, run_id, status):
            self.status = (run_id, status)

    entities = SimpleNamespace(Metric=lambda *values: values, Param=lambda *values: values)
    module = SimpleNamespace(clients=clients, MlflowClient=Client, entities=entities)
    monkeypatch.setitem(sys.modules, "mlflow", module)
    return module


def told(config, run, *, step=0, fails=None):
    """A log of two lines and a histogram with the observers that the configuration asks for."""
    observers = open_observers(config, run, step=step)
    try:
        with RunLog(run, epochs=0, step=step, observers=observers) as log:
            log.write("step", 1, step + 1, NUMBERS)
            log.histograms(step + 1, HISTOGRAM)
            if fails is not None:
                raise fails
            log.write("epoch", 1, step + 1, {"top1/test": 0.5})
    except type(fails or None):
        pass


def scalars(run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(run.tensorboard))
    accumulator.Reload()
    names = accumulator.Tags()
    return {name: accumulator.Scalars(name)[-1].value for name in names["scalars"]}, names["histograms"]


def test_tensorboard_by_default(run):
    told(load_config(None), run)
    found, histograms = scalars(run)
    assert found == {"loss/total": 1.5, "clips_per_second": 3.0, "top1/test": 0.5}
    assert histograms == ["similarity_own_class"]
    assert not run.observers.exists()


def test_without_observers_the_file_has_the_numbers_all_the_same(run):
    told(load_config(None, ["log.tensorboard=false"]), run)
    assert not run.tensorboard.exists()
    assert [line["event"] for line in run.history()] == ["step", "epoch"]


def test_weights_and_biases_is_told_by_step_and_goes_on_with_its_run(run, wandb):
    config = load_config(None, ["log.wandb=fencing", "log.tensorboard=false", "optim.lr=0.5"])
    told(config, run)
    first = wandb.runs[0]
    assert (first.options["project"], first.options["name"], first.options["id"]) == ("fencing", "run", None)
    assert first.options["dir"] == str(run.path)
    assert first.options["config"]["optim"]["lr"] == 0.5
    assert first.metrics == [("*", "step")]
    assert first.logged == [
        {"step": 1, **NUMBERS},
        {"step": 1, "similarity_own_class": ("histogram", list(HISTOGRAM["similarity_own_class"]))},
        {"step": 1, "top1/test": 0.5},
    ]
    assert first.exit_code == 0
    told(config, run, step=1, fails=KeyboardInterrupt())
    second = wandb.runs[1]
    assert (second.options["id"], second.options["resume"]) == (first.id, "allow")
    assert second.exit_code == 1


def test_mlflow_gets_parameters_metrics_and_the_configuration(run, mlflow):
    uri = "sqlite:///runs.db"
    config = load_config(None, [f"log.mlflow={uri}", "log.mlflow_experiment=fencing", "log.tensorboard=false"])
    config.model.templates = ["{label} " * 100]  # longer than MLflow takes
    save_config(config, run.config)
    told(config, run)
    client = mlflow.clients[0]
    assert client.uri == uri
    assert client.run == ("e0", "run")
    assert client.params["optim.lr"] == "0.01"
    assert client.params["model.backbone_options"] == "{}"
    assert "model.templates" not in client.params
    assert max(client.batches) <= 100 < len(client.params)
    identity = json.loads(run.observers.read_text())["mlflow"]
    assert [(r, name, value, step) for r, name, value, _, step in client.metrics] == [
        (identity, "loss/total", 1.5, 1),
        (identity, "clips_per_second", 3.0, 1),
        (identity, "top1/test", 0.5, 1),
    ]
    assert client.artifacts == [(identity, str(run.config))]
    assert client.status == (identity, "FINISHED")
    told(config, run, step=1, fails=KeyboardInterrupt())
    again = mlflow.clients[1]
    assert again.params == {}
    assert again.metrics[0][0] == identity
    assert again.status == (identity, "FAILED")


def test_an_observer_that_fails_is_left_out_with_a_warning_and_training_goes_on(run, wandb):
    config = load_config(None, ["log.wandb=fencing"])
    observers = open_observers(config, run, step=0)

    def lost(values):
        raise ConnectionError("no route")

    wandb.runs[0].log = lost
    with RunLog(run, epochs=0, step=0, observers=observers) as log:
        with pytest.warns(UserWarning, match=r"log\.wandb: told nothing from here on.*ConnectionError: no route"):
            log.write("step", 1, 1, NUMBERS)
        log.write("step", 1, 2, NUMBERS)
    assert [line["step"] for line in run.history()] == [1, 2]
    assert scalars(run)[0]["loss/total"] == 1.5
    assert wandb.runs[0].exit_code is None


@pytest.mark.parametrize("library", ["wandb", "mlflow"])
def test_a_library_that_is_not_there_is_told_with_its_extra(library, monkeypatch):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ModuleNotFoundError, match=rf"log\.{library} needs {library}.*art-kernels\[{library}\]"):
        require_observers(load_config(None, [f"log.{library}=somewhere"]).log)
    require_observers(load_config(None).log)


def test_a_rank_without_a_log_takes_the_same_calls():
    with NoLog() as log:
        log.write("step", 1, 1, NUMBERS)
        log.histograms(1, HISTOGRAM)
