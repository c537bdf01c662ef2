"""Models on the Hugging Face Hub (extra ``[hub]``): uploading with a model card, and downloading.

A repository has the files of ``save_pretrained``. Only two of them are downloaded, the configuration as JSON and the
weights as safetensors; nothing is unpickled or executed.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from art.data.files import write_text
from art.extras import import_extra
from art.model import CONFIG_FILE, WEIGHTS_FILE, find_checkpoint
from art.model.files import read_config, write_config
from art.model.options import ARTOptions
from art.terminal import plural

if TYPE_CHECKING:
    from art.model.pretrained import VideoClassifier

__all__ = ["download", "is_repository", "model_card", "push_to_hub"]

CARD_FILE = "README.md"
EVALUATION_FILE = "evaluation.json"

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]*[A-Za-z0-9]", re.ASCII)
_CLASS_NAMES = {"art": "ARTModel", "backbone": "BackboneClassifier"}
_METRICS = (("top1", "top-1"), ("top5", "top-5"), ("mean_class_accuracy", "mean class accuracy"))


def is_repository(name: str | os.PathLike[str]) -> bool:
    """Return whether ``name`` is a string of the form "user/name" and no such local path exists.

    Examples:
        >>> from art.tools.hub import is_repository
        >>> is_repository("user/name"), is_repository("runs/motion")  # a local directory
        (True, False)
    """
    return isinstance(name, str) and _NAME.fullmatch(name) is not None and not Path(name).exists()


def download(repository: str, *, revision: str | None = None, token: str | bool | None = None) -> Path:
    """Download a model into the cache of ``huggingface_hub`` and return its directory. Cached files are reused.

    Args:
        repository: "user/name".
        revision: branch, tag, or commit; None is the newest. Use a commit for reproducible weights.
        token: for a private repository; None uses the one stored by ``hf auth login``, if any.

    Raises:
        ModuleNotFoundError: If the extra ``hub`` is not installed.
        FileNotFoundError: If the repository, the revision, or one of the two files does not exist or is not accessible.
        OSError: If the Hub cannot be reached and the model is not in the cache.
    """
    hub = import_extra("huggingface_hub", extra="hub", needed_by=f"{repository!r}, which is not a local directory,")
    errors = import_extra("huggingface_hub.errors", extra="hub", needed_by="the Hugging Face Hub")
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        try:
            path = hub.hf_hub_download(repository, name, revision=revision, token=token)
        except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
            at = "" if revision is None else f" at revision {revision!r}"
            raise FileNotFoundError(
                f"{repository} is not a local directory and was not found on the Hub{at}; check the name, or log in "
                "with `hf auth login` if it is private"
            ) from error
        except errors.LocalEntryNotFoundError as error:
            raise ConnectionError(
                f"{repository} is not a local directory, the Hub cannot be reached for its {name}, and the file is not "
                "in the cache; check the path, or the connection"
            ) from error
        except errors.EntryNotFoundError as error:
            raise FileNotFoundError(
                f"{repository} on the Hub has no {name}; expected the files that push_to_hub writes, {CONFIG_FILE} and "
                f"{WEIGHTS_FILE} (other weight formats are not loaded, because that could execute code)"
            ) from error
    return Path(path).parent


def push_to_hub(
    model: VideoClassifier | str | os.PathLike[str],
    repository: str,
    *,
    evaluation: Mapping[str, Any] | str | os.PathLike[str] | None = None,
    private: bool = False,
    revision: str | None = None,
    token: str | None = None,
    license: str | None = None,
    message: str = "Upload model",
) -> str:
    """Upload ``config.json``, ``model.safetensors``, and a model card in one commit.

    Args:
        model: an object with ``save_pretrained(directory)``, or the directory of a checkpoint or a run.
        repository: "user/name"; created if it does not exist.
        evaluation: content or path of the model's ``evaluation.json``, for the card. None uses the file in the
            checkpoint's directory, or in the run's for its last checkpoint; without one, the card states that there is
            no evaluation.
        private: whether a new repository is private.
        revision: branch to commit to; None is "main".
        token: None uses the one stored by ``hf auth login``.
        license: of the weights, as an identifier of the Hub such as "apache-2.0"; None omits it.
        message: commit message.

    Returns:
        The URL of the commit.

    Raises:
        ModuleNotFoundError: If the extra ``hub`` is not installed.
        ValueError: If ``repository`` is not of the form "user/name", or ``evaluation`` is of other classes.
        FileNotFoundError: If the checkpoint or the evaluation does not exist.
        OSError: If the Hub rejects the upload, or cannot be reached.
    """
    if _NAME.fullmatch(repository) is None:
        raise ValueError(f"repository is {repository!r}, expected 'user/name'")
    hub = import_extra("huggingface_hub", extra="hub", needed_by="push_to_hub")
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary)
        if isinstance(model, str | os.PathLike):
            checkpoint = find_checkpoint(Path(model))
            evaluation = _find_evaluation(checkpoint) if evaluation is None else evaluation
            for name in (CONFIG_FILE, WEIGHTS_FILE):
                shutil.copyfile(checkpoint / name, directory / name)
        else:
            model.save_pretrained(directory)
        _remove_local_path(directory / CONFIG_FILE)
        results = evaluation
        if isinstance(evaluation, str | os.PathLike):
            results = json.loads(Path(evaluation).read_text(encoding="utf-8"))
        card = model_card(directory, repository, cast("Mapping[str, Any] | None", results), license=license)
        write_text(directory / CARD_FILE, card)
        api = hub.HfApi(token=token)
        created = api.create_repo(repo_id=repository, private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=created.repo_id,
            folder_path=directory,
            repo_type="model",
            revision=revision,
            commit_message=message,
            allow_patterns=[CONFIG_FILE, WEIGHTS_FILE, CARD_FILE],
        )
    return str(commit.commit_url)


def model_card(
    model: VideoClassifier | str | os.PathLike[str],
    repository: str,
    evaluation: Mapping[str, Any] | None = None,
    *,
    license: str | None = None,
) -> str:
    """Return the model card: Markdown with the Hub's metadata, derived from the saved files alone.

    Args:
        model: a model, or the directory that it was saved to.
        repository: "user/name".
        evaluation: content of ``evaluation.json``. If None, the card states that there is no evaluation.
        license: of the weights, as an identifier of the Hub; None omits it.

    Raises:
        ValueError: If the evaluation is of other classes than the model's.
        ModuleNotFoundError: If the extra ``hub`` is not installed.

    Examples:
        >>> from art import BackboneClassifier
        >>> from art.tools.hub import model_card
        >>> card = model_card(BackboneClassifier(["walk", "run"], num_frames=2), "user/walk-or-run")
        >>> "No evaluation was uploaded with this model." in card
        True
    """
    if not isinstance(model, str | os.PathLike):
        with tempfile.TemporaryDirectory() as temporary:
            model.save_pretrained(Path(temporary))
            return model_card(temporary, repository, evaluation, license=license)
    config = json.loads((Path(model) / CONFIG_FILE).read_text(encoding="utf-8"))
    classes = config["class_names"]
    if evaluation is not None and [entry["name"] for entry in evaluation["per_class"]] != classes:
        raise ValueError(
            f"evaluation is of {len(evaluation['per_class'])} classes that are not the model's {len(classes)}; "
            "evaluate this checkpoint with art evaluate --report, and pass its evaluation.json"
        )
    name = repository.partition("/")[2]
    class_name = _CLASS_NAMES.get(config["kind"], "VideoClassifier")
    sections = [
        f"---\n{_metadata(name, evaluation, license)}\n---",
        f"# {name}",
        _description(config),
        "## Usage\n\n```python\n"
        f"from art import {class_name}\n\n"
        f'model = {class_name}.from_pretrained("{repository}")\n'
        'model.predict("clip.mp4")  # [(class, probability), ...]\n```',
        "## Evaluation\n\n"
        + ("No evaluation was uploaded with this model." if evaluation is None else _results(evaluation)),
        "## Classes\n\n" + "\n".join(f"{index}. {_escape(label)}" for index, label in enumerate(classes)),
        "## Options that differ from the defaults\n\n" + _changed_options(config["options"]),
    ]
    return "\n\n".join(sections) + "\n"


def _metadata(name: str, evaluation: Mapping[str, Any] | None, license: str | None) -> str:
    hub = import_extra("huggingface_hub", extra="hub", needed_by="a model card")
    results = [
        hub.EvalResult(
            task_type="video-classification",
            dataset_type=evaluation["dataset"],
            dataset_name=evaluation["dataset"],
            dataset_split=evaluation["split"],
            metric_type="accuracy",
            metric_name=label,
            metric_value=evaluation[key],
        )
        for key, label in _METRICS
        if evaluation is not None and evaluation.get(key) is not None
    ]
    data = hub.ModelCardData(
        library_name="art-kernels",
        pipeline_tag="video-classification",
        tags=["video-classification", "action-recognition", "arxiv:2511.21202"],
        license=license,
        model_name=name,
        eval_results=results or None,
    )
    return str(data.to_yaml()).strip()


def _description(config: Mapping[str, Any]) -> str:
    options, sampling = config["options"], config.get("sampling", {})
    method = "Backbone without ART"
    if config["kind"] == "probe":
        method = f"Frozen backbone with the head `{options['head']}`"
    elif config["kind"] == "art":
        paper = "[arXiv 2511.21202](https://arxiv.org/abs/2511.21202)"
        method = f"Action-Region Tracking ({paper}) with {options['num_tracklets']} tracklets"
    details = [f"{len(config['class_names'])} classes", f"{options['num_frames']} frames per clip"]
    if size := config.get("input_size"):  # absent in models saved by earlier versions, as is num_parameters
        details[-1] = f"{options['num_frames']} frames of {size}×{size} pixels per clip"
    if kind := sampling.get("kind"):
        stride = sampling.get("stride", 1)
        details[-1] += f" ({kind} sampling{f', stride {stride}' if stride > 1 else ''})"
    if count := config.get("num_parameters"):
        details.append(f"{count:,} parameters")
    return f"{method}, backbone `{options['backbone']}`: {', '.join(details)}."


def _results(evaluation: Mapping[str, Any]) -> str:
    lines = [f"Split `{evaluation['split']}` of `{evaluation['dataset']}`, {evaluation['clips']} clips.", ""]
    lines += ["| | % |", "| --- | --- |"]
    lines += [
        f"| {label} | {100 * evaluation[key]:.2f} |" for key, label in _METRICS if evaluation.get(key) is not None
    ]
    if evaluation.get("unreadable_clips"):
        lines += ["", f"Excluded, because of read errors: {plural(evaluation['unreadable_clips'], 'clip')}."]
    settings = [f"{key} {evaluation[key]}" for key in ("sampling", "views", "crops") if key in evaluation]
    provenance = evaluation.get("provenance", {})
    settings += [f"{key} {provenance[key]}" for key in ("art", "torch", "date") if key in provenance]
    lines += ["", ", ".join(settings) + "."] if settings else []
    return "\n".join(lines)


def _changed_options(options: Mapping[str, Any]) -> str:
    defaults = asdict(ARTOptions())
    changed = {name: value for name, value in options.items() if value != defaults.get(name)}
    if changed.get("pretrained") is not None:
        changed["pretrained"] = Path(changed["pretrained"]).name
    return "\n".join(f"- `{name}`: `{value}`" for name, value in changed.items()) or "None."


def _escape(text: str) -> str:
    """Escape the characters that are special in Markdown."""
    return "".join(f"\\{character}" if character in r"\`*_[]<>#|" else character for character in text)


def _find_evaluation(checkpoint: Path) -> Path | None:
    """Return the evaluation in a checkpoint's directory or, for the last one of a run, in the run's."""
    directories = [checkpoint]
    if (checkpoint.parent.name, checkpoint.name) == ("checkpoints", "last"):
        directories.append(checkpoint.parent.parent)
    return next((path for directory in directories if (path := directory / EVALUATION_FILE).is_file()), None)


def _remove_local_path(config: Path) -> None:
    """Reduce the path of the initial weights to its file name: it is private, and loading does not need it."""
    content = read_config(config.parent)  # verified: writing it again renews its checksum
    if content["options"]["pretrained"] is not None:
        content["options"]["pretrained"] = Path(content["options"]["pretrained"]).name
        write_config(config, content)
