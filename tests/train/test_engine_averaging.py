import pytest
import torch
from torch import nn
from torch.testing import assert_close

from art.train.ema import WeightAverage


def small():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))


def moved(model, amount):
    """After a step that moves everything, counts included."""
    with torch.no_grad():
        for value in model.state_dict().values():
            value.add_(amount if value.is_floating_point() else 1)


def test_the_average_follows_weights_and_buffers_by_its_decay():
    model = small()
    expected = {name: value.clone().double() for name, value in model.state_dict().items()}
    average = WeightAverage(model, decay=0.3)
    for step in range(30):
        moved(model, float(step))
        average.update(model)
        decay = min(0.3, (1 + step) / (10 + step))
        for name, value in model.state_dict().items():
            expected[name] = decay * expected[name] + (1 - decay) * value.double()
    assert average.steps == 30
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            assert_close(average.values[name], expected[name].float())
            assert not torch.allclose(average.values[name], value)
    assert average.values["1.num_batches_tracked"] == model[1].num_batches_tracked == 30


def test_it_takes_the_place_of_the_weights_and_gives_it_back():
    model = small()
    average = WeightAverage(model, decay=0.9)
    moved(model, 1.0)
    own = {name: value.clone() for name, value in model.state_dict().items()}
    storage = model[0].weight.data_ptr()
    with pytest.raises(KeyError), average.in_place_of(model):  # also where something goes wrong
        assert all(torch.equal(value, average.values[name]) for name, value in model.state_dict().items())
        assert model[0].weight.data_ptr() == storage  # optimizers and compiled code go on with the same memory
        raise KeyError
    assert all(torch.equal(value, own[name]) for name, value in model.state_dict().items())
