"""The reader of the documents, whom all workers of pytest share a world with."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # `docs` and `benchmarks` are no installed packages

if not sys.platform.startswith("linux"):
    collect_ignore = ["test_commands.py", "test_python_blocks.py"]  # files and ends of processes are found in /proc


@pytest.fixture(scope="session")
def reader(tmp_path_factory):
    from reader import Reader

    own = tmp_path_factory.getbasetemp()
    shared = own.parent if own.name.startswith("popen-") else own  # of a worker of pytest-xdist
    own = tmp_path_factory.mktemp("worlds")
    reader = Reader(shared / "documents", own)
    yield reader
    reader.close()
