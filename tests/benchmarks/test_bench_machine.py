import subprocess

import torch

from benchmarks import machine


def test_slug():
    assert machine.slug("NVIDIA GeForce RTX 4090 (24 GB)") == "nvidia-geforce-rtx-4090-24-gb"


def test_describe_names_device_and_threads():
    facts = machine.describe(torch.device("cpu"))
    assert facts["kind"] == "cpu" and facts["device"] and facts["threads"] == torch.get_num_threads()


def test_commit_marks_changed_files_and_may_be_absent(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "ROOT", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert machine.commit() is None

    def git(*arguments):
        identity = (
            "-c",
            "user.name=A",
            "-c",
            "user.email=a@example.org",
            "-c",
            "commit.gpgsign=false",
            "-c",
            "core.hooksPath=",
        )
        return subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True, text=True)

    git("init")
    (tmp_path / "file").write_text("one")
    git("add", "file")
    git("commit", "-m", "one")
    head = git("rev-parse", "HEAD").stdout.strip()
    assert machine.commit() == head
    (tmp_path / "file").write_text("two")
    assert machine.commit() == head + "+"
