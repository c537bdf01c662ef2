"""Published checkpoints: what is read from a file, and how names find their parameters."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.testing import assert_close

from art.backbones.checkpoint import load_by_name, read_checkpoint


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 1)
        self.norm = nn.BatchNorm2d(3)
        self.extra = nn.Linear(3, 1)


def load(module, state, **options):
    return load_by_name(module, state, source="weights.pth", fits="a Small", **options)


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model_state_dict", "model_state", "model"])
def test_a_state_dict_by_itself_or_wrapped(tmp_path, wrapper):
    state = Small().state_dict()
    saved = state if wrapper is None else {"epoch": 3, "best": 0.5, wrapper: state, "optimizer": {"state": {}}}
    torch.save(saved, tmp_path / "weights.pth")
    read = read_checkpoint(tmp_path / "weights.pth")
    assert_close(read, dict(state))


def test_safetensors(tmp_path):
    state = Small().state_dict()
    save_file(state, tmp_path / "weights.safetensors")
    assert_close(read_checkpoint(tmp_path / "weights.safetensors"), dict(state))


def test_prefixes_come_off_where_they_are(tmp_path):
    names = ["module.base.conv.weight", "base.conv.bias", "module.norm", "conv.module.base"]
    torch.save({name: torch.zeros(1) for name in names}, tmp_path / "weights.pth")
    read = read_checkpoint(tmp_path / "weights.pth", prefixes=("module.", "base."))
    assert list(read) == ["conv.weight", "conv.bias", "norm", "conv.module.base"]


def test_the_same_name_with_and_without_a_prefix_is_refused(tmp_path):
    torch.save({"a.w": torch.zeros(1), "w": torch.ones(1)}, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=r"weights\.pth holds 'w' twice, with and without a prefix \(a\.\)"):
        read_checkpoint(tmp_path / "weights.pth", prefixes=("a.",))


def test_files_that_hold_no_state_dict_are_named(tmp_path):
    path = tmp_path / "weights.pth"
    with pytest.raises(FileNotFoundError, match=r"pretrained is '.*weights\.pth': there is no such file"):
        read_checkpoint(path)
    torch.save({"epoch": 3, "net": Small().state_dict()}, path)
    with pytest.raises(ValueError, match=r"a dict with the keys epoch, net; expected names and tensors.*state_dict"):
        read_checkpoint(path)
    torch.save([1, 2], path)
    with pytest.raises(ValueError, match=r"weights\.pth holds a list; expected names and tensors"):
        read_checkpoint(path)
    for content in (b"", b"some text"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="cannot be read as tensors alone"):
            read_checkpoint(path)
        (tmp_path / "x.safetensors").write_bytes(content)
        with pytest.raises(ValueError, match=r"x\.safetensors is no safetensors file"):
            read_checkpoint(tmp_path / "x.safetensors")


def test_no_code_is_unpickled(tmp_path):
    torch.save(Small(), tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=r"nothing else is unpickled.*save its state dict by itself"):
        read_checkpoint(tmp_path / "weights.pth")


def test_everything_is_loaded_and_converted():
    module, other = Small(), Small()
    other.norm.running_mean += 1
    assert load(module, other.double().state_dict()) == []
    assert_close(module.state_dict(), other.float().state_dict())


def test_names_that_may_be_missing_keep_their_values_and_are_returned():
    module, other = Small(), Small()
    state = {name: value for name, value in other.state_dict().items() if not name.startswith("extra")}
    before = module.extra.weight.clone()
    assert load(module, state, may_lack=["extra.bias", "extra.weight"]) == ["extra.weight", "extra.bias"]
    assert_close(module.extra.weight, before)
    assert_close(module.conv.weight, other.conv.weight)


def test_the_count_of_batches_may_be_missing():
    module, other = Small(), Small()
    state = other.state_dict()
    del state["norm.num_batches_tracked"]
    assert load(module, state) == []
    assert_close(module.conv.weight, other.conv.weight)


def test_all_that_does_not_fit_is_in_one_error_and_nothing_is_loaded():
    module, state = Small(), Small().state_dict()
    before = module.norm.weight.clone()
    del state["conv.bias"]
    state["conv.weight"] = torch.zeros(3, 2, 3, 3)
    state["norm.weight"] = torch.full((3,), 7.0)
    state["head.weight"] = torch.zeros(5, 3)
    with pytest.raises(ValueError, match=r"weights\.pth does not fit") as caught:
        load(module, state)
    assert str(caught.value).splitlines()[1:] == [
        "  1 missing: conv.bias",
        "  1 unexpected: head.weight",
        "  1 of another shape: conv.weight [3, 2, 3, 3], expected [3, 2, 1, 1]",
        "  What would fit: a Small",
    ]
    assert_close(module.norm.weight, before)


def test_a_long_list_is_cut_and_counted():
    with pytest.raises(ValueError, match=r"25 unexpected: more\.0, .*more\.19, and 5 more"):
        load(Small(), {**Small().state_dict(), **{f"more.{i}": torch.zeros(1) for i in range(25)}})
