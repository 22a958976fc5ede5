"""The distance of the weights from those before training."""

import math
from typing import Any

import pytest
import torch

from meow_ray.config import Lora, Train
from meow_ray.errors import MeowError
from meow_ray.stages.train.objectives import resolve
from meow_ray.stages.train.weight_distance import DIRECTIONS, WeightDistance


def network(rows: int, columns: int) -> Any:
    torch.manual_seed(0)
    return torch.nn.Linear(columns, rows)


def test_a_network_has_no_distance_from_itself_and_no_gradient():
    model = network(5, 3)
    distance = WeightDistance.of(model).to(model)
    distance.backward()
    assert distance.item() == 0
    assert model.weight.grad.abs().max() == 0
    assert model.bias.grad is None, "only matrices count"


def test_the_order_of_rows_does_not_count():
    model = network(5, 3)
    before = WeightDistance.of(model)
    with torch.no_grad():
        model.weight.copy_(model.weight.flip(0))
    assert before.to(model).item() == pytest.approx(0, abs=1e-10)


def test_a_matrix_of_one_column_has_the_distance_of_its_sorted_values():
    model = network(3, 1)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0], [5.0], [2.0]]))
        before = WeightDistance.of(model)
        model.weight.copy_(torch.tensor([[2.0], [7.0], [4.0]]))
    # in one dimension every unit vector is 1 or -1: 1 -> 2, 2 -> 4, 5 -> 7
    assert before.to(model).item() == pytest.approx(1 + 4 + 4)


def test_a_shift_of_all_rows_has_its_squared_length_over_the_dimension_on_average():
    rows, columns = 4, 300
    model = network(rows, columns)
    before = WeightDistance.of(model)
    shift = torch.full((columns,), 0.1)
    with torch.no_grad():
        model.weight.add_(shift)
    # the mean of (u . shift)^2 over unit vectors u is |shift|^2 / columns
    expected = rows * shift.square().sum().item() / columns
    error = 3 * math.sqrt(2 / DIRECTIONS)
    assert before.to(model).item() == pytest.approx(expected, rel=error)


def test_a_step_down_the_gradient_leads_back():
    model = network(6, 4)
    before = WeightDistance.of(model)
    with torch.no_grad():
        model.weight.add_(torch.randn(6, 4))
    distance = before.to(model)
    distance.backward()
    with torch.no_grad():
        model.weight.sub_(0.01 * model.weight.grad)
    assert before.to(model).item() < distance.item()


def test_frozen_matrices_do_not_count():
    model = network(5, 3).requires_grad_(requires_grad=False)
    assert not WeightDistance.of(model).before


def test_adapters_are_refused():
    with pytest.raises(MeowError) as caught:
        resolve(Train(objective="meow", weight_distance=0.1, lora=Lora()), None)
    assert str(caught.value) == (
        "`train.weight_distance` measures whole weights, which do not change with `train.lora`. "
        "Remove one of the two."
    )
