"""Training metrics. wandb and MLflow are replaced by modules that record the calls."""

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from art.train import logging as logging_module
from art.train.checkpoint import RunDir
from art.train.config import load_config, save_config, to_dict
from art.train.logging import NullLogger, RunLogger, ThroughputMeter, check_loggers, open_loggers

METRICS = {"loss/total": 1.5, "clips_per_second": 3.0}
HISTOGRAM = {"similarity_own_class": np.array([0.1, 0.2], dtype=np.float32)}


@pytest.fixture
def run(tmp_path):
    directory = RunDir(tmp_path / "run")
    directory.path.mkdir()
    return directory


@pytest.fixture
def wandb(monkeypatch):
    """The part of wandb that is used; ``runs`` records the calls."""
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
    """The part of MLflow that is used; ``clients`` records the calls."""
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


def log_run(config, run, *, step=0, error=None):
    """Logs two lines and a histogram with the configured loggers; raises ``error`` before the second line."""
    loggers = open_loggers(config.log, run, to_dict(config), step=step)
    try:
        with RunLogger(run, epochs=0, step=step, loggers=loggers) as log:
            log.write("step", 1, step + 1, METRICS)
            log.histograms(step + 1, HISTOGRAM)
            if error is not None:
                raise error
            log.write("epoch", 1, step + 1, {"top1/test": 0.5})
    except type(error or None):
        pass


def read_tensorboard(run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(run.tensorboard))
    accumulator.Reload()
    tags = accumulator.Tags()
    return {name: accumulator.Scalars(name)[-1].value for name in tags["scalars"]}, tags["histograms"]


def test_lines_after_the_resumed_state_are_removed(tmp_path):
    run = RunDir(tmp_path)
    with RunLogger(run, epochs=0, step=0) as log:
        for step in range(1, 5):
            log.write("step", (step + 1) // 2, step, {"loss/total": float(step)})
            if step % 2 == 0:
                log.write("epoch", step // 2, step, {"top1/test": 0.5})
    # Resume after the steps of the second epoch and before its evaluation: its line is written again.
    with RunLogger(run, epochs=1, step=4) as log:
        log.write("epoch", 2, 4, {"top1/test": 0.75})
    assert [(line["event"], line["step"]) for line in run.history()] == [
        ("step", 1), ("step", 2), ("epoch", 2), ("step", 3), ("step", 4), ("epoch", 4),
    ]  # fmt: skip
    assert run.history()[-1]["top1/test"] == 0.75


def test_tensorboard_is_the_default(run):
    log_run(load_config(None), run)
    scalars, histograms = read_tensorboard(run)
    assert scalars == {"loss/total": 1.5, "clips_per_second": 3.0, "top1/test": 0.5}
    assert histograms == ["similarity_own_class"]
    assert not run.loggers.exists()


def test_metrics_file_without_loggers(run):
    log_run(load_config(None, ["log.tensorboard=false"]), run)
    assert not run.tensorboard.exists()
    assert [line["event"] for line in run.history()] == ["step", "epoch"]


def test_wandb_logs_by_step_and_continues_its_run(run, wandb):
    config = load_config(None, ["log.wandb=fencing", "log.tensorboard=false", "optim.lr=0.5"])
    log_run(config, run)
    first = wandb.runs[0]
    assert (first.options["project"], first.options["name"], first.options["id"]) == ("fencing", "run", None)
    assert first.options["dir"] == str(run.path)
    assert first.options["config"]["optim"]["lr"] == 0.5
    assert first.metrics == [("*", "step")]
    assert first.logged == [
        {"step": 1, **METRICS},
        {"step": 1, "similarity_own_class": ("histogram", list(HISTOGRAM["similarity_own_class"]))},
        {"step": 1, "top1/test": 0.5},
    ]
    assert first.exit_code == 0
    run.loggers.rename(run.path / "observers.json")  # the name in runs of earlier versions
    log_run(config, RunDir(run.path), step=1, error=KeyboardInterrupt())
    second = wandb.runs[1]
    assert (second.options["id"], second.options["resume"]) == (first.id, "allow")
    assert second.exit_code == 1


def test_mlflow_logs_parameters_metrics_and_config(run, mlflow):
    uri = "sqlite:///runs.db"
    config = load_config(None, [f"log.mlflow={uri}", "log.mlflow_experiment=fencing", "log.tensorboard=false"])
    config.model.templates = ["{label} " * 100]  # longer than MLflow's limit
    save_config(config, run.config)
    log_run(config, run)
    client = mlflow.clients[0]
    assert client.uri == uri
    assert client.run == ("e0", "run")
    assert client.params["optim.lr"] == "0.01"
    assert client.params["model.backbone_options"] == "{}"
    assert "model.templates" not in client.params
    assert max(client.batches) <= 100 < len(client.params)
    run_id = json.loads(run.loggers.read_text())["mlflow"]
    assert [(r, name, value, step) for r, name, value, _, step in client.metrics] == [
        (run_id, "loss/total", 1.5, 1),
        (run_id, "clips_per_second", 3.0, 1),
        (run_id, "top1/test", 0.5, 1),
    ]
    assert client.artifacts == [(run_id, str(run.config))]
    assert client.status == (run_id, "FINISHED")
    log_run(config, run, step=1, error=KeyboardInterrupt())
    resumed = mlflow.clients[1]
    assert resumed.params == {}
    assert resumed.metrics[0][0] == run_id
    assert resumed.status == (run_id, "FAILED")


def test_failing_logger_is_disabled_with_a_warning(run, wandb):
    config = load_config(None, ["log.wandb=fencing"])
    loggers = open_loggers(config.log, run, to_dict(config), step=0)

    def fail(values):
        raise ConnectionError("no route")

    wandb.runs[0].log = fail
    with RunLogger(run, epochs=0, step=0, loggers=loggers) as log:
        with pytest.warns(UserWarning, match=r"log\.wandb: disabled for the rest.*ConnectionError: no route"):
            log.write("step", 1, 1, METRICS)
        log.write("step", 1, 2, METRICS)
    assert [line["step"] for line in run.history()] == [1, 2]
    assert read_tensorboard(run)[0]["loss/total"] == 1.5
    assert wandb.runs[0].exit_code is None


@pytest.mark.parametrize("library", ["wandb", "mlflow"])
def test_missing_library_names_its_extra(library, monkeypatch):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ModuleNotFoundError, match=rf"log\.{library} needs {library}.*art-kernels\[{library}\]"):
        check_loggers(load_config(None, [f"log.{library}=somewhere"]).log)
    check_loggers(load_config(None).log)


def test_null_logger_has_the_same_methods():
    def methods(log):
        return {name for name in vars(log) if not name.startswith("_") and callable(getattr(log, name))}

    assert methods(NullLogger) == methods(RunLogger)
    with NullLogger() as log:
        log.write("step", 1, 1, METRICS)
        log.histograms(1, HISTOGRAM)


def test_throughput_meter(monkeypatch):
    meter = ThroughputMeter(torch.device("cpu"))
    meter.update(8, data_seconds=0.5, compute_seconds=1.0)
    meter.update(8, data_seconds=0.1, compute_seconds=2.0)
    metrics = meter.compute()
    assert metrics["seconds/step"] == 1.5
    assert metrics["seconds/data"] == pytest.approx(0.3)
    assert metrics["clips_per_second"] == pytest.approx(16 / 3.6)
    assert metrics["memory_gib/process"] > 0.01
    assert "memory_gib/device" not in metrics
    monkeypatch.setattr(logging_module, "peak_device_memory_bytes", lambda device: 3 * 2**29)
    meter.update(4, data_seconds=0.0, compute_seconds=1.0)
    metrics = meter.compute()
    assert metrics["clips_per_second"] == 4
    assert metrics["memory_gib/device"] == 1.5
