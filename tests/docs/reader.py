"""Who reads the documents and types their commands: each in a small world of its own, as bash runs it."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sysconfig
import threading
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from filelock import FileLock
from warm import WarmPython
from world import build

from art.cli import build_parser

SECONDS = 120
CLUSTER = Path(__file__).with_name("cluster")
#: The options that name what a command writes.
_ADDRESS = re.compile(r"http://[\w.]+:\d+\S*")
_WRITTEN = ("--out", "--report", "--to", "--plots")


@dataclass(frozen=True)
class Outcome:
    """What came of a command: the folder where it ran, its exit code, what it said on both channels."""

    world: Path
    code: int
    said: str


class Reader:
    """Runs commands; the world that each begins with, and the process with the imports, are made once for all workers.

    Attributes:
        template: the world as it is before a command.
    """

    def __init__(self, folder: Path, own: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._own = folder, own
        self._lock = FileLock(folder / "lock")
        with self._lock:
            self.warm = WarmPython(folder / "warm")
            self.template = folder / "world"
            if not (folder / "built").exists():
                shutil.rmtree(self.template, ignore_errors=True)
                build(self.template, self.check)
                (folder / "built").touch()

    def close(self) -> None:
        """Lets go of the process; the last one to do so ends it."""
        with self._lock:
            self.warm.close()

    def check(self, command: str, world: Path) -> None:
        outcome = self.shell(command, world)
        assert outcome.code == 0, outcome.said

    def environment(self, world: Path) -> dict[str, str]:
        """Programs are found where they are warm; nothing is kept outside of the world, and no hub is asked."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("ART_", "PYTEST", "TRITON", "SLURM"))}
        places = (str(self.warm.bin), str(CLUSTER), sysconfig.get_path("scripts"), os.environ["PATH"])
        return {
            **kept,
            "PATH": os.pathsep.join(places),
            "HOME": str(world),
            "XDG_CACHE_HOME": str(world / "cache"),
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
            "MPLBACKEND": "agg",
        }

    def start(self, text: str, world: Path, **variables: str) -> subprocess.Popen[str]:
        """Begins a command or a script; it has a group of processes to itself."""
        return subprocess.Popen(
            ["bash", "-euc", text],
            cwd=world,
            env={**self.environment(world), **variables},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def shell(self, text: str, world: Path, **variables: str) -> Outcome:
        """Runs a command in a folder, with these variables in its environment."""
        process = self.start(text, world, **variables)
        try:
            said = process.communicate(timeout=SECONDS)[0]
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            said = f"{process.communicate()[0]}\ntook more than {SECONDS} s"
        return Outcome(world, process.returncode, said)

    def served(self, text: str, world: Path) -> Outcome:
        """Begins a command that serves a page, waits for its address, opens that, and stops it as Ctrl-C does."""
        process = self.start(text, world)
        clock = threading.Timer(SECONDS, os.killpg, (process.pid, signal.SIGKILL))
        clock.start()
        said, code = "", None
        assert process.stdout is not None
        for line in process.stdout:
            said += line
            address = _ADDRESS.search(line)
            if address is not None and code is None:
                with urllib.request.urlopen(address[0], timeout=SECONDS) as answer:
                    code = answer.status
                os.killpg(process.pid, signal.SIGINT)
        clock.cancel()
        return Outcome(world, 0 if code == 200 and process.wait() in (0, 130) else 1, said)

    def world(self, text: str) -> Path:
        """A new world for a command: runs that it names are copies, everything else is that of all."""
        world = self._own / f"world{len(list(self._own.iterdir()))}"
        world.mkdir(parents=True)
        for path in self.template.iterdir():
            if path.name == "runs":
                (world / "runs").mkdir()
                for run in path.iterdir():
                    if f"runs/{run.name}" in text:
                        shutil.copytree(run, world / "runs" / run.name)
            elif path.name == "data":
                (world / "data").mkdir()
                for data in path.iterdir():
                    (world / "data" / data.name).symlink_to(data)
            elif path.name == "docs" and "docs" in text:
                shutil.copytree(path, world / "docs")
            else:
                (world / path.name).symlink_to(path)
        return world


def written(words: str) -> list[str]:
    """What a command says that it writes, or writes by default: relative paths."""
    try:
        tokens = shlex.split(words.replace("\\\n", " "), comments=True)
    except ValueError:
        return []
    found = [after for option, after in pairwise(tokens) if option in _WRITTEN]
    found += [token.partition("=")[2] for token in tokens if token.startswith("output=")]
    if "art" not in tokens:
        return found
    command, *rest = tokens[tokens.index("art") + 1 :]
    if command == "prepare" and rest[0] == "motion":
        found.append(rest[rest.index("--root") + 1])
    if not found:
        found += _by_default(command, rest)
    return found


def _by_default(command: str, rest: Sequence[str]) -> list[str]:
    recipe = next((f"runs/{Path(word).stem}" for word in rest if word.startswith("configs/")), "")
    if command in ("train", "compare", "ablate") and "--dry-run" not in rest:
        return [recipe]
    if command == "profile":
        return [f"{recipe}/profile"]
    if command == "explain":
        return [f"runs/explain-{Path(rest[0]).stem}"]
    if command == "prepare":
        return [f"runs/prepare-{rest[0]}/prepare.json"]
    return []


def is_there(path: Path) -> bool:
    """Whether it is a file that holds something, or a folder with one."""
    if path.is_dir():
        return any(file.stat().st_size > 0 for file in path.rglob("*") if file.is_file())
    return path.is_file() and path.stat().st_size > 0


def remove(path: Path) -> None:
    """A file, a folder, or a link to one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def known_to_art(words: str) -> str | None:
    """What is wrong with a command of ``art`` that is mentioned, where its options are looked at; None: nothing."""
    tokens = [token for token in shlex.split(words) if token != "…"]
    commands = next(
        action.choices for action in build_parser()._actions if action.dest == "command" and action.choices is not None
    )
    if tokens[1] not in commands:
        return f"no command {tokens[1]}"
    known = {option for action in commands[tokens[1]]._actions for option in action.option_strings}
    unknown = [token for token in tokens if token.startswith("--") and token not in known]
    return f"no option {unknown[0]}" if unknown else None
