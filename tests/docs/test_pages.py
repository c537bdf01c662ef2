"""Code on the pages: Python blocks run, the quick start runs from its first line to its last, `art` commands parse."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from art.parser import build_parser

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
QUICK_START = ROOT / "docs" / "quick_start.md"
#: Pages whose Python needs a trained model or a dataset; the tests of those features cover it.
NEEDS_FILES = {"datasets.md", "explain.md", "export.md", "prediction.md", "quick_start.md"}
#: Sizes that take minutes, and smaller ones with the same code path.
SMALLER = {"32768": "512"}
#: The quick start with fewer and smaller clips, and one epoch on few frames.
FASTER = {
    "--train-per-class 10 --test-per-class 4": "--train-per-class 1 --test-per-class 1 --size 64 --workers 2",
    "art train configs/motion.yaml": "art train configs/motion.yaml optim.epochs=1 model.num_frames=4",
    "art train configs/clips.yaml": "art train configs/clips.yaml optim.epochs=1 model.num_frames=4",
}

_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.S | re.M)


def code_blocks(page: Path, *languages: str) -> list[tuple[str, str]]:
    """Return the language and the text of each fenced block in one of these languages."""
    return [found for found in _BLOCK.findall(page.read_text(encoding="utf-8")) if found[0] in languages]


def shell_commands(page: Path) -> list[str]:
    """Return the commands of the shell blocks, with continued lines joined."""
    text = "\n".join(text for _, text in code_blocks(page, "sh")).replace("\\\n", " ")
    return [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]


def art_commands() -> list[tuple[str, str]]:
    """Return page and text of every complete `art` command in shell blocks."""
    return [
        (page.relative_to(ROOT).as_posix(), command)
        for page in PAGES
        for command in shell_commands(page)
        if command.startswith("art ")
    ]


def run(command: list[str], directory: Path) -> None:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    outcome = subprocess.run(command, cwd=directory, capture_output=True, text=True, env={**os.environ, "PATH": path})
    assert outcome.returncode == 0, f"{shlex.join(command)}\n{outcome.stdout}\n{outcome.stderr}"


@pytest.mark.parametrize("page", [p for p in PAGES if code_blocks(p, "python")], ids=lambda p: p.name)
def test_python_blocks_run_as_one_program(page, tmp_path, monkeypatch):
    text = "\n".join(text for _, text in code_blocks(page, "python"))
    program = compile(text, str(page), "exec")
    if page.name not in NEEDS_FILES:
        for size, smaller in SMALLER.items():
            text = text.replace(size, smaller)
        program = compile(text, str(page), "exec")
        monkeypatch.chdir(tmp_path)
        exec(program, {"__name__": page.stem})


@pytest.mark.parametrize(("page", "command"), art_commands())
def test_art_commands_parse(page, command):
    tokens = shlex.split(command, comments=True)[1:]
    options, rest = build_parser().parse_known_args(tokens)
    assert options.command, f"{page}: {command}"
    assert all("=" in token for token in rest), f"{page}: {command}: unknown arguments {rest}"


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_quick_start_runs(tmp_path):
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    steps = 0
    for language, text in code_blocks(QUICK_START, "sh", "python"):
        if language == "python":
            run([sys.executable, "-c", text], tmp_path)
            steps += 1
            continue
        for line in text.splitlines():
            words = shlex.split(line, comments=True)
            if not words or words[0] == "pip":
                continue
            if "data/mine" in line and not (tmp_path / "data" / "mine").exists():
                copy_own_clips(tmp_path / "data")
            faster = shlex.join(words)
            for slow, fast in FASTER.items():
                faster = faster.replace(slow, fast)
            run(shlex.split(faster), tmp_path)
            steps += 1
    assert steps >= 8
    assert (tmp_path / "runs/few/report.html").is_file() and (tmp_path / "sheet.png").is_file()


def copy_own_clips(data: Path) -> None:
    """Create the directory of own clips, and the clip, that the quick start assumes."""
    clips = sorted((data / "few" / "clips" / "train").glob("*.mp4"))
    for i, clip in enumerate(clips[:4]):
        target = data / "mine" / ("wave left", "wave right")[i % 2] / f"{i}.mp4"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(clip.read_bytes())
    (data.parent / "clip.mp4").write_bytes(clips[0].read_bytes())
