"""The warning about bfloat16 on a CPU that has no instructions for it."""

import pytest

from meow_ray.stages.train import cpu_speed


def test_the_slowdown_compares_the_times_of_both_dtypes(monkeypatch: pytest.MonkeyPatch):
    import torch

    seconds = {torch.bfloat16: 0.6, torch.float32: 0.2}
    monkeypatch.setattr(cpu_speed, "_seconds", seconds.__getitem__)
    assert cpu_speed.bfloat16_slowdown() == pytest.approx(3)


def test_the_slowdown_of_this_cpu_is_a_positive_number():
    assert cpu_speed.bfloat16_slowdown() > 0
