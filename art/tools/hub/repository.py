"""To the Hugging Face Hub and from it (extra ``[hub]``).

Uploads and downloads go through ``huggingface_hub``'s mixin; what is saved has one form, on a disk and on the Hub. Of a
repository two files are fetched, the configuration as JSON and the weights as safetensors: nothing in it is unpickled
or run.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from art.extras import import_extra
from art.model.pretrained import CONFIG_FILE, WEIGHTS_FILE, VideoClassifier, load_model
from art.tools.hub.card import CARD_FILE, model_card

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]*[A-Za-z0-9]", re.ASCII)
EVALUATION_FILE = "evaluation.json"


def is_repository(name: str | os.PathLike[str]) -> bool:
    """Whether ``name`` means a repository: a string "user/name" under which there is no local path.

    Examples:
        >>> from art.tools.hub import is_repository
        >>> is_repository("user/name"), is_repository("runs/motion")  # there is such a folder
        (True, False)
    """
    return isinstance(name, str) and _NAME.fullmatch(name) is not None and not Path(name).exists()


def download(repository: str, *, revision: str | None = None, token: str | bool | None = None) -> Path:
    """The folder with the model of a repository, in the cache of ``huggingface_hub``: what is there stays there.

    Args:
        repository: "user/name".
        revision: branch, tag or commit; None is the newest. Name a commit to get the same weights always.
        token: for a private repository; None takes the one that ``hf auth login`` stored, if any.

    Raises:
        ModuleNotFoundError: the extra ``hub`` is not installed.
        FileNotFoundError: no such repository or revision, none that may be seen, or one without the two files.
        OSError: the Hub cannot be reached, and the cache does not have the model.
    """
    hub = import_extra("huggingface_hub", extra="hub", needed_by=f"{repository!r}, which is no local folder,")
    errors = hub.errors
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        try:
            path = hub.hf_hub_download(repository, name, revision=revision, token=token)
        except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
            at = "" if revision is None else f" at revision {revision!r}"
            raise FileNotFoundError(
                f"{repository} is no local folder, and on the Hub there is none{at} that may be seen; check the name, "
                "or log in with `hf auth login` if it is private"
            ) from error
        except errors.LocalEntryNotFoundError as error:
            raise _unreachable(repository, name) from error
        except errors.EntryNotFoundError as error:
            raise FileNotFoundError(
                f"{repository} on the Hub has no {name}; expected what push_to_hub writes: {CONFIG_FILE} and "
                f"{WEIGHTS_FILE} (weights in another form are not loaded, because that could run code)"
            ) from error
    return Path(path).parent


def from_hub(repository: str, *, revision: str | None = None, token: str | None = None) -> VideoClassifier:
    """The model of a repository; arguments and errors as of :func:`download`."""
    hub = import_extra("huggingface_hub", extra="hub", needed_by=f"{repository!r}, which is no local folder,")
    from art.tools.hub.mixin import SharedModel

    try:
        return SharedModel.from_pretrained(repository, revision=revision, token=token).model
    except hub.errors.LocalEntryNotFoundError as error:  # the mixin asks for the configuration first
        raise _unreachable(repository, CONFIG_FILE) from error


def _unreachable(repository: str, name: str) -> ConnectionError:
    return ConnectionError(
        f"{repository} is no local folder, and the Hub cannot be reached for its {name}, which the cache does not "
        "have; check the path, or the connection"
    )


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
    """Put a model on the Hub: ``config.json``, ``model.safetensors`` and a card, in one commit.

    Args:
        model: a model, or the folder of a checkpoint or a run.
        repository: "user/name", made if need be.
        evaluation: of this model, for the card: what ``evaluation.json`` holds, or its path. None: of a folder, the one
            beside it (a run's is of its last checkpoint); else the card says that there is none.
        private: of a repository that is made.
        revision: the branch to commit to; None is "main".
        token: None takes the one that ``hf auth login`` stored.
        license: of the weights, by the Hub's names, such as "apache-2.0"; None says nothing.
        message: of the commit.

    Returns:
        The address of the commit.

    Raises:
        ModuleNotFoundError: the extra ``hub`` is not installed.
        ValueError: ``repository`` is no "user/name", or ``evaluation`` is of other classes.
        FileNotFoundError: there is no such checkpoint or evaluation.
        OSError: the Hub refuses, or cannot be reached.
    """
    if _NAME.fullmatch(repository) is None:
        raise ValueError(f"repository is {repository!r}, expected 'user/name'")
    import_extra("huggingface_hub", extra="hub", needed_by="push_to_hub")
    from art.tools.hub.mixin import SharedModel

    if not isinstance(model, VideoClassifier):
        from art.eval.evaluate import find_checkpoint

        folder = find_checkpoint(Path(model))
        evaluation = _beside(folder) if evaluation is None else evaluation
        model = load_model(folder)
    measured: Mapping[str, Any] | None
    if isinstance(evaluation, str | os.PathLike):
        measured = json.loads(Path(evaluation).read_text(encoding="utf-8"))
    else:
        measured = evaluation
    card = model_card(model, repository, measured, license=license)
    commit = SharedModel(model, card).push_to_hub(
        repository,
        private=private,
        token=token,
        branch=revision,
        commit_message=message,
        allow_patterns=[CONFIG_FILE, WEIGHTS_FILE, CARD_FILE],
    )
    return str(getattr(commit, "commit_url", commit))  # it is declared as the address, and is the commit


def _beside(checkpoint: Path) -> Path | None:
    """The evaluation of a checkpoint, where there is one: in its folder, or, of a run's last one, in the run's."""
    places = [checkpoint]
    if (checkpoint.parent.name, checkpoint.name) == ("checkpoints", "last"):
        places.append(checkpoint.parent.parent)
    return next((path for place in places if (path := place / EVALUATION_FILE).is_file()), None)
