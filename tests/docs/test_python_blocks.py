"""The Python of every page runs, block after block as one program, in the small world of the commands."""

import ast
from importlib.util import find_spec

import pytest
from cases import AFTER
from documents import Block, python_pages
from reader import Reader

PAGES = {page: blocks for page, blocks in python_pages() if page != "docs/quick_start.md"}  # which runs in order

#: Sizes that take minutes, and what is smaller.
SMALLER = {"docs/tracklet_nce.md": {"32768": "512"}}
#: What is not run: more is needed than the packages of the tests.
NEEDS = {"docs/prediction.md": "ray"}
#: What comes before a page, as a module: the Hub is a folder here.
BEFORE = {
    "docs/export.md": """\
import shutil, types, huggingface_hub
def upload(self, *, repo_id, folder_path, **_):
    shutil.copytree(folder_path, repo_id)
    return types.SimpleNamespace(commit_url="https://hub/commit")
huggingface_hub.HfApi.create_repo = lambda self, repo_id, **_: types.SimpleNamespace(repo_id=repo_id)
huggingface_hub.HfApi.upload_folder = upload
"""
}


def program(page: str, blocks: list[Block]) -> str:
    """All blocks of a page, each in the lines that it has there."""
    lines: list[str] = []
    for block in blocks:
        lines += [""] * (block.line - 1 - len(lines)) + block.text.splitlines()
    text = "\n".join(lines) + "\n"
    for size, smaller in SMALLER.get(page, {}).items():
        assert size in text, f"{page} has no {size}"
        text = text.replace(size, smaller)
    return text


@pytest.mark.parametrize("page", PAGES)
def test_the_python_of_a_page_runs(reader: Reader, page: str):
    text = program(page, PAGES[page])
    compile(text, page, "exec")
    needed = NEEDS.get(page)
    if needed is not None and find_spec(needed) is None:
        text = imports_of_ours(text)
    before = AFTER.get(page, "")
    world = reader.world(text + before)
    if before:
        reader.check(before, world)
    if page in BEFORE:
        (world / "hub.py").write_text(BEFORE[page])
        text = "import hub" + text  # in the first line of the page, which is no Python
    (world / "page.py").write_text(text)
    outcome = reader.shell("python page.py", world)
    assert outcome.code == 0, f"{page}, with its lines as those of page.py:\n{outcome.said}"


def imports_of_ours(text: str) -> str:
    """What a program imports of this repository without the package that is not there."""
    found = [node for node in ast.parse(text).body if isinstance(node, ast.ImportFrom)]
    ours = [ast.unparse(node) for node in found if node.module.startswith("art") and "ray" not in node.module]
    assert ours
    return "\n".join(ours) + "\n"


def test_what_is_made_smaller_or_left_out_is_on_a_page():
    assert {*SMALLER, *NEEDS, *BEFORE} <= set(PAGES)
