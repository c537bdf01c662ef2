"""Models on the Hub, with the real client against a small server on this machine, and uploads caught."""

import json
import threading
from hashlib import sha1
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml

from art import ARTModel, BackboneClassifier, load_model
from art.data.transforms.sampling import FrameSampling
from art.model.files import read_config
from art.tools.hub import is_repository, model_card, push_to_hub

if find_spec("huggingface_hub") is None:
    pytest.skip("the extra [hub] is not installed", allow_module_level=True)
import huggingface_hub
from huggingface_hub import constants

CLASSES = ["jump", "turn <left> *twice*", "stand"]
EVALUATION = {
    "dataset": "motion",
    "split": "test",
    "clips": 20,
    "unreadable_clips": 1,
    "top1": 0.75,
    "top5": 1.0,
    "mean_class_accuracy": 0.7,
    "per_class": [{"name": name, "clips": 5, "correct": 4} for name in CLASSES],
    "sampling": "sparse",
    "views": 4,
    "provenance": {"art": "0.1.0", "torch": "2.13.0", "date": "2026-11-24"},
}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    options = {"width": 4, "depth": [1, 1, 1]}
    model = BackboneClassifier(CLASSES, num_frames=3, dropout=0.1, backbone_options=options)
    model.sampling = FrameSampling("dense", 4)
    return model.eval()


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A local Hub: ``hub.files[(repository, revision)]`` are files by name, ``hub.requests`` the received requests."""
    hub = SimpleNamespace(files={}, requests=[])

    class Handler(BaseHTTPRequestHandler):
        def respond(self, body):
            _, user, name, _, revision, file = self.path.split("/", 5)
            hub.requests.append((self.command, file))
            files = hub.files.get((f"{user}/{name}", revision))
            known = any(repository == f"{user}/{name}" for repository, _ in hub.files)
            content = None if files is None else files.get(file)
            error = "EntryNotFound" if files is not None else "RevisionNotFound" if known else "RepoNotFound"
            self.send_response(404 if content is None else 200)
            if content is None:
                self.send_header("X-Error-Code", error)
            self.send_header("X-Repo-Commit", sha1(revision.encode()).hexdigest())
            self.send_header("ETag", f'"{sha1(content or b"").hexdigest()}"')
            self.send_header("Content-Length", str(len(content or b"")))
            self.end_headers()
            if body:
                self.wfile.write(content or b"")

        def do_GET(self):
            self.respond(True)

        def do_HEAD(self):
            self.respond(False)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.chdir(tmp_path)
    yield hub
    server.shutdown()
    server.server_close()


@pytest.fixture
def uploads(monkeypatch):
    """Record uploads as a list of (repository, private, files by name, commit options)."""
    sent, made = [], {}

    def create_repo(self, *, repo_id, private, exist_ok):
        assert exist_ok
        made[repo_id] = private
        return SimpleNamespace(repo_id=repo_id)

    def upload_folder(self, *, repo_id, folder_path, allow_patterns, repo_type, **options):
        options = {name: value for name, value in options.items() if value is not None}
        files = {path.name: path.read_bytes() for path in Path(folder_path).iterdir()}
        assert sorted(files) == sorted(allow_patterns)
        sent.append((repo_id, made[repo_id], files, {"token": self.token, **options}))
        return SimpleNamespace(commit_url=f"https://hub/{repo_id}/commit/1")

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", create_repo)
    monkeypatch.setattr(huggingface_hub.HfApi, "upload_folder", upload_folder)
    return sent


def test_upload_and_download(model, hub, uploads):
    address = model.push_to_hub("me/kicks", evaluation=EVALUATION, private=True, token="t", revision="v1", message="m")
    assert address == "https://hub/me/kicks/commit/1"
    repository, private, files, options = uploads[0]
    assert (repository, private) == ("me/kicks", True)
    assert options == {"token": "t", "commit_message": "m", "revision": "v1"}
    assert sorted(files) == ["README.md", "config.json", "model.safetensors"]

    hub.files["me/kicks", "main"] = files
    loaded = BackboneClassifier.from_pretrained("me/kicks")
    assert loaded.class_names == CLASSES and loaded.sampling == FrameSampling("dense", 4)
    assert loaded.options == model.options
    video = torch.rand(2, 3, 3, 48, 48)
    with torch.no_grad():
        assert torch.equal(loaded(video).logits, model(video).logits)
    assert {file for _, file in hub.requests} == {"config.json", "model.safetensors"}  # nothing else is downloaded
    with pytest.raises(ValueError, match="me/kicks holds a model of kind 'backbone', expected art"):
        ARTModel.from_pretrained("me/kicks")


def test_revision(model, hub, uploads):
    model.push_to_hub("me/kicks")
    files = uploads[0][2]
    config = json.loads(files["config.json"])
    del config["sha256"]  # the file is edited
    config["class_names"][0] = "hop"
    hub.files["me/kicks", "v2"] = {**files, "config.json": json.dumps(config).encode()}
    hub.files["me/kicks", "main"] = files
    assert load_model("me/kicks", revision="v2").class_names[0] == "hop"
    assert load_model("me/kicks").class_names[0] == "jump"
    with pytest.raises(FileNotFoundError, match="was not found on the Hub at revision 'v3'"):
        load_model("me/kicks", revision="v3")


def test_local_directory_takes_precedence(model, hub, uploads, tmp_path):
    model.push_to_hub("me/kicks")
    hub.files["me/kicks", "main"] = uploads[0][2]
    other = BackboneClassifier(["a", "b"], num_frames=3, backbone_options={"width": 4, "depth": [1, 1, 1]})
    other.save_pretrained(tmp_path / "me" / "kicks")
    assert load_model("me/kicks").class_names == ["a", "b"]
    with pytest.raises(ValueError, match="revision is 'v2', but me/kicks is a local path"):
        load_model("me/kicks", revision="v2")
    (tmp_path / "me" / "kicks" / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match="expected a directory written by save_pretrained"):
        load_model("me/kicks")
    assert hub.requests == []


def test_is_repository():
    assert is_repository("me/kicks") and is_repository("a-b.c/d_e-1")
    others = (Path("me/kicks"), "kicks", "runs/x/last", "./kicks", "../kicks", "/kicks", "me/", "me/k?ick")
    assert [name for name in others if is_repository(name)] == []


def test_missing_repository_files_and_network(hub, monkeypatch):
    message = "me/kicks is not a local directory and was not found on the Hub; check"
    with pytest.raises(FileNotFoundError, match=message):
        load_model("me/kicks")
    hub.files["me/pickled", "main"] = {"config.json": b"{}", "pytorch_model.bin": b"cos\nsystem\n(S'false'\ntR."}
    with pytest.raises(FileNotFoundError, match=r"me/pickled on the Hub has no model\.safetensors; expected"):
        load_model("me/pickled")
    assert ("GET", "pytorch_model.bin") not in hub.requests
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(OSError, match="me/kicks is not a local directory, the Hub cannot be reached"):
        load_model("me/kicks")


def test_run_is_uploaded_with_its_evaluation(model, uploads, tmp_path):
    last = tmp_path / "run" / "checkpoints" / "last"
    model.save_pretrained(last)
    (tmp_path / "run" / "evaluation.json").write_text(json.dumps(EVALUATION))
    push_to_hub(tmp_path / "run", "me/a")
    push_to_hub(last, "me/b")
    last.rename(last.with_name("best"))  # the run's evaluation is of the last checkpoint
    push_to_hub(last.with_name("best"), "me/c")
    cards = [files["README.md"].decode() for _, _, files, _ in uploads]
    assert ["| top-1 | 75.00 |" in card for card in cards] == [True, True, False]
    assert "No evaluation was uploaded with this model." in cards[2]


def test_nothing_is_uploaded_for_invalid_input(model, uploads, tmp_path):
    with pytest.raises(ValueError, match="repository is 'kicks', expected 'user/name'"):
        model.push_to_hub("kicks")
    other = {**EVALUATION, "per_class": EVALUATION["per_class"][:2]}
    with pytest.raises(ValueError, match="evaluation is of 2 classes that are not the model's 3"):
        model.push_to_hub("me/kicks", evaluation=other)
    with pytest.raises(FileNotFoundError):
        model.push_to_hub("me/kicks", evaluation=tmp_path / "evaluation.json")
    with pytest.raises(FileNotFoundError, match="checkpoint: no config"):
        push_to_hub(tmp_path, "me/kicks")
    assert uploads == []


def test_model_card(model):
    card = model_card(model, "me/kicks", EVALUATION, license="mit")
    _, head, text = card.split("---\n", 2)
    data = yaml.safe_load(head)
    assert data["license"] == "mit" and data["pipeline_tag"] == "video-classification"
    (result,) = data["model-index"][0]["results"]
    assert result["dataset"] == {"name": "motion", "type": "motion", "split": "test"}
    values = {metric["name"]: metric["value"] for metric in result["metrics"]}
    assert values == {"top-1": 0.75, "top-5": 1.0, "mean class accuracy": 0.7}
    for line in (
        "| mean class accuracy | 70.00 |",
        "Split `test` of `motion`, 20 clips.",
        "Excluded, because of read errors: 1 clip.",
        "sampling sparse, views 4, art 0.1.0, torch 2.13.0, date 2026-11-24.",
        'BackboneClassifier.from_pretrained("me/kicks")',
        r"1. turn \<left\> \*twice\*",
        "- `dropout`: `0.1`",
        f"{sum(parameter.numel() for parameter in model.parameters()):,} parameters",
        "3 frames of 112×112 pixels per clip (dense sampling, stride 4)",
    ):
        assert line in text
    assert "`latent_dim`" not in text  # has its default value


def test_local_paths_are_not_uploaded(model, uploads, monkeypatch, tmp_path):
    monkeypatch.setattr(model.options, "pretrained", "/home/somebody/k400.pth")
    model.push_to_hub("me/kicks")
    files = uploads[0][2]
    assert "- `pretrained`: `k400.pth`" in files["README.md"].decode()
    assert json.loads(files["config.json"])["options"]["pretrained"] == "k400.pth"
    assert all(b"somebody" not in content for content in files.values())
    (tmp_path / "config.json").write_bytes(files["config.json"])
    assert read_config(tmp_path)["options"]["pretrained"] == "k400.pth"  # its checksum is that of the new content


def test_model_card_of_a_checkpoint_of_an_earlier_version(model, tmp_path):
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["input_size"], config["num_parameters"], config["sha256"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert "3 classes, 3 frames per clip (dense sampling, stride 4)." in model_card(tmp_path, "me/kicks")
