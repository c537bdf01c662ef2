"""Every command of README.md, CONTRIBUTING.md and docs/ is run as it is written, in a small world; see ``cases.py``.

A new command needs nothing here where the world has what it names. Else it is given that in ``cases.py``, or, where it
cannot run on a machine like this one, a reason.
"""

import importlib
import re
import shlex
import time
from pathlib import Path

import pytest
import yaml
from cases import AFTER, BENCHMARK, COUNTS, EXCLUDED, OWN_NAMES, as_run, free_port, prepare
from documents import ROOT, Command, blocks, commands, statements
from packaging.requirements import Requirement
from reader import SECONDS, Reader, is_there, known_to_art, written

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

ALL = commands()
QUICK_START = "docs/quick_start.md"


def is_mention(command: Command) -> bool:
    """Within a sentence, and no whole command: ``art predict``, ``art predict CLIP … --checkpoint RUN``."""
    words = command.words.split()
    part = len(words) == 2 or words[2].startswith("--") or not {"…", "CONFIG"}.isdisjoint(words)
    return command.inline and words[0] == "art" and part


def in_order(command: Command) -> bool:
    """On the quick start alone, which is run from its first line to its last."""
    return all(place.startswith(f"{QUICK_START}:") for place in command.places)


MENTIONS = [command for command in ALL if is_mention(command)]
INSTALLED = [command for command in ALL if command.words.startswith("pip install")]
BENCHMARKS = [c for c in ALL if c.words.startswith(BENCHMARK) and not c.words.startswith(COUNTS)]
ELSEWHERE = (*MENTIONS, *INSTALLED, *BENCHMARKS)
RUN = [c for c in ALL if c.words not in (*EXCLUDED, *AFTER.values()) and c not in ELSEWHERE and not in_order(c)]


def named(command):
    return f"{command.places[0]} {command.words[:60]}"


@pytest.mark.parametrize("command", RUN, ids=named)
def test_a_command_does_what_its_page_says(reader: Reader, command: Command):
    before = AFTER.get(command.words)
    world = reader.world(as_run(command.words, command.text) + (before or ""))
    if before is not None:
        reader.check(before, world)
    run(reader, command, world)


def run(reader: Reader, command: Command, world: Path) -> None:
    """It ends well, and what it writes is there."""
    text = as_run(command.words, command.text)
    prepare(reader, world, text)
    if command.words.startswith("art serve"):
        outcome = reader.served(text, world)
    else:
        outcome = reader.shell(text, world, **variables(text))
    assert outcome.code == 0, f"{' '.join(command.places)}\n$ {text}\n{outcome.said}"
    for name in written(text):
        assert is_there(world / name), f"{' '.join(command.places)}: {name} is not there\n$ {text}\n{outcome.said}"


def test_the_quick_start_leads_from_nothing_to_pictures(reader: Reader):
    """Each command and each block of Python, in order, where only the repository and the reader's own clips are."""
    world = reader.world("")
    steps = 0
    for block in blocks((ROOT / QUICK_START).read_text(), QUICK_START):
        if block.language == "python":
            outcome = reader.shell(f"python - <<'END'\n{block.text}END\n", world)
            assert outcome.code == 0, f"{QUICK_START}:{block.line}\n{outcome.said}"
            steps += 1
        for number, text in statements(block.text) if block.language == "sh" else ():
            command = Command(text, (f"{QUICK_START}:{block.line + number}",), inline=False)
            if not command.words.startswith("pip"):
                run(reader, command, world)
                steps += 1
    assert steps >= 8
    assert is_there(world / "runs/few/report.html") and is_there(world / "sheet.png")


def variables(text: str) -> dict[str, str]:
    """What Slurm sets for a job on one machine with two tasks."""
    if "SLURM_" not in text:
        return {}
    names = {"JOB_ID": "7", "JOB_NODELIST": "here", "NNODES": "1", "NTASKS": "2", "NTASKS_PER_NODE": "2"}
    return {"head": "127.0.0.1", **{f"SLURM_{name}": value for name, value in names.items()}}


def test_whatever_is_excluded_is_there():
    """And what it names: a file of the repository, or a target of the Makefile."""
    found = {command.words for command in ALL}
    assert not set(EXCLUDED) - found, "excluded, but on no page"
    commands_before = {words for words in (*AFTER, *AFTER.values()) if not words.endswith(".md")}
    assert not {*OWN_NAMES, *commands_before} - found, "no such command on a page"
    for words in EXCLUDED:
        for word in words.split():
            assert not word.endswith(".py") or (ROOT / word).is_file(), words


@pytest.mark.parametrize("command", MENTIONS, ids=named)
def test_a_command_that_is_mentioned_is_one(command):
    assert known_to_art(command.words) is None


@pytest.mark.parametrize("command", BENCHMARKS, ids=named)
def test_a_benchmark_has_the_options_of_its_page(command, monkeypatch):
    file, *options = shlex.split(command.words)[1:]
    assert (ROOT / file).is_file()
    module = importlib.import_module(f"benchmarks.{Path(file).stem}")
    if hasattr(module, "make_parser"):
        module.make_parser().parse_args(options)
        return
    monkeypatch.setattr(module, "run", lambda settings: pytest.skip("understood"))  # once its options were read
    with pytest.raises(pytest.skip.Exception):
        module.main(options)


@pytest.mark.parametrize("command", INSTALLED, ids=named)
def test_what_is_installed_is_there(command):
    """Nothing is installed: the extra is declared, and the constraints are a file. The build is a test of its own."""
    words = shlex.split(command.words, comments=True)[2:]
    if words[0] == "-c":
        assert (ROOT / words[1]).is_file()
        words = words[2:]
    (wanted,) = words
    wanted = re.sub(r"^\.(?=$|\[)", "art-kernels", wanted)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    requirement = Requirement(wanted)
    assert requirement.name == project["name"]
    assert requirement.extras <= set(project["optional-dependencies"])


def test_kubernetes_gets_a_command_of_art(reader: Reader):
    """The manifest of docs/training.md is YAML; its container runs as one of one process."""
    (block,) = [b for b in blocks((ROOT / "docs/training.md").read_text(), "docs/training.md") if b.language == "yaml"]
    job = yaml.safe_load(block.text)
    template = job["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]["spec"]
    (container,) = template["containers"]
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in template["volumes"]}
    text = as_run("", shlex.join(container["command"]))
    world = reader.world(text)
    joined = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    outcome = reader.shell(text, world, **joined)
    assert outcome.code == 0, outcome.said
    assert is_there(world / "shared/runs/art/evaluation.json")


def test_slurm_s_job_saves_and_puts_itself_back_when_its_time_ends(reader: Reader):
    (job,) = [command for command in RUN if "scontrol requeue" in command.text]
    text = as_run(job.words, job.text)
    world = reader.world(text)
    recipe = world / "configs-of-its-own.yaml"
    recipe.write_text(
        "include: [configs/motion.yaml]\noptim: {epochs: 1000}\ncheckpoints: {every_steps: 1}\nlog_every: 1\n"
    )
    process = reader.start(text.replace("configs/motion.yaml", recipe.name), world, **variables(text))
    metrics = world / "shared/runs/art/metrics.jsonl"
    deadline = time.monotonic() + SECONDS
    while not (metrics.is_file() and '"step"' in metrics.read_text()):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0]
        time.sleep(0.05)
    process.terminate()
    said = process.communicate(timeout=SECONDS)[0]
    assert (world / "requeued.txt").read_text() == "7\n"
    assert "stopped by signal 15 after step" in said
    assert is_there(world / "shared/runs/art/checkpoints/last/training_state.pt")
