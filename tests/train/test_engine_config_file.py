"""Files that include others."""

import pytest

from art.train.config import load_config
from art.train.config_file import ConfigError, read_config_files


@pytest.fixture
def files(tmp_path):
    def write(**texts):
        for name, text in texts.items():
            path = tmp_path / f"{name.replace('__', '/')}.yaml"
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
        return tmp_path

    return write


def test_what_comes_later_overrules_what_it_includes(files):
    root = files(
        parts__base="seed: 1\noptim: {lr: 0.5, epochs: 3}\nmodel: {backbone_options: {width: 4}}\n",
        parts__fast="include: [base.yaml]\noptim: {lr: 0.25}\n",
        parts__small="data: {workers: 0}\noptim: {epochs: 2}\n",
        recipe="include: [parts/fast.yaml, parts/small.yaml]\nmodel: {backbone_options: {depth: [1]}}\noutput: x\n",
    )
    config = load_config(root / "recipe.yaml", ["seed=7"])
    assert (config.seed, config.output, config.data.workers) == (7, "x", 0)
    assert (config.optim.lr, config.optim.epochs) == (0.25, 2)
    assert config.model.backbone_options == {"width": 4, "depth": [1]}
    assert [name.rsplit("/", 1)[1] for name, _ in read_config_files(root / "recipe.yaml")] == [
        "base.yaml", "fast.yaml", "small.yaml", "recipe.yaml",
    ]  # fmt: skip


def test_empty_options_take_away_what_was_there(files):
    root = files(base="model: {text_options: {model: ViT-B-16}}\n", recipe="include: [base.yaml]\n")
    assert load_config(root / "recipe.yaml").model.text_options == {"model": "ViT-B-16"}
    assert load_config(root / "recipe.yaml", ["model.text_options={}"]).model.text_options == {}


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("include: [nowhere.yaml]", FileNotFoundError, r"no file .*nowhere\.yaml \(included by .*recipe\.yaml\)"),
        ("include: base.yaml", ConfigError, r"recipe\.yaml: include is 'base\.yaml', expected a list of files"),
        ("include: [3]", ConfigError, r"include is \[3\], expected a list of files"),
        ("include: [recipe.yaml]", ConfigError, r"include leads back to it, by way of .*recipe\.yaml"),
        ("include: [base.yaml]", ConfigError, r"optim\.lrr: unknown key"),
    ],
)
def test_what_cannot_be_included_is_named(files, text, error, message):
    root = files(base="optim: {lrr: 1}\n", recipe=text)
    with pytest.raises(error, match=message):
        load_config(root / "recipe.yaml")


def test_the_error_names_the_file_that_holds_the_value(files):
    root = files(base="optim: {lr: fast}\n", recipe="include: [base.yaml]\n")
    with pytest.raises(ConfigError, match=r"optim\.lr: got 'fast', expected float \(from .*base\.yaml\)"):
        load_config(root / "recipe.yaml")
