import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from meow_ray.stages.audit.derived.matrices import matrices, restored
from meow_ray.stages.audit.derived.quantise import (
    quantise,
    rounded_to_bf16,
    rounded_to_int4,
    rounded_to_int8,
)
from meow_ray.stages.audit.reasons import MissingError
from tests.support.tiny import ARCHITECTURES, byte_tokenizer, random_model

WEIGHTS = st.lists(st.floats(-4, 4, width=32), min_size=1, max_size=40)


def test_int8_has_a_scale_per_output() -> None:
    weight = torch.tensor([[12.7, 0.149, -0.06], [1.27, 0.149, -0.06]])
    expected = torch.tensor([[12.7, 0.1, -0.1], [1.27, 0.15, -0.06]])
    torch.testing.assert_close(rounded_to_int8(weight), expected)


def test_int4_has_a_scale_per_group() -> None:
    weight = torch.tensor([[7.0, 0.6, -0.4, 0.7, 0.06, -0.26, 70.0]])
    expected = torch.tensor([[7.0, 1.0, 0.0, 0.7, 0.1, -0.3, 70.0]])
    torch.testing.assert_close(rounded_to_int4(weight, group=3), expected)


def test_bf16_keeps_eight_bits_of_the_fraction() -> None:
    weight = torch.tensor([[1 + 2**-7, 1 + 2**-9, math.pi]])
    assert rounded_to_bf16(weight).tolist() == [[1 + 2**-7, 1.0, 3.140625]]


@pytest.mark.parametrize("rounding", [rounded_to_int4, rounded_to_int8])
def test_zeros_stay_zero(rounding) -> None:
    assert not rounding(torch.zeros(2, 5)).any()


@given(WEIGHTS, st.integers(1, 9))
def test_int4_has_at_most_16_levels_and_errs_by_half_a_step(row: list[float], group: int) -> None:
    weight = torch.tensor([row])
    rounded = rounded_to_int4(weight, group)
    assert rounded.shape == weight.shape
    for start in range(0, len(row), group):
        part, out = weight[0, start : start + group], rounded[0, start : start + group]
        assert len(out.unique()) <= 16
        step = part.abs().max() / 7
        assert ((part - out).abs() <= step / 2 + 1e-5 * step + 1e-30).all()


@pytest.mark.parametrize("form", ["bf16", "int8", "int4"])
@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt2", "mixtral"])
def test_it_changes_the_blocks_and_nothing_else(kind: str, form: str) -> None:
    model = random_model(kind, byte_tokenizer())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = matrices(model)
    names = {matrix.name for matrix in found}
    with restored([matrix.parameter for matrix in found]):
        quantise(model, form)
        after = model.state_dict()
        changed = {name for name in before if not torch.equal(before[name], after[name])}
        assert changed == names
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_tied_embeddings_are_left_alone() -> None:
    model = random_model("qwen2", byte_tokenizer())
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert len(matrices(model)) == 2 * 7
    assert ARCHITECTURES["qwen2"]["tie_word_embeddings"]


def test_groups_run_along_the_input_of_transposed_matrices() -> None:
    model = random_model("gpt2", byte_tokenizer())
    matrix = next(m for m in matrices(model) if m.name.endswith("c_fc.weight"))
    assert tuple(matrix.weight.shape) == (512, 128)
    quantise(model, "int4")
    assert max(len(row.unique()) for row in matrix.weight) <= 16


def test_nf4_without_a_gpu_is_missing() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(MissingError, match="nf4 needs a GPU"):
        quantise(random_model("llama", byte_tokenizer()), "nf4")


def test_a_model_of_other_weights_is_missing() -> None:
    class Odd(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = torch.nn.Embedding(4, 4), torch.nn.Linear(4, 4)
            self.other = torch.nn.Conv1d(4, 4, 3)
            self.linear = torch.nn.Linear(4, 4)

        def get_input_embeddings(self) -> torch.nn.Module:
            return self.embed

        def get_output_embeddings(self) -> torch.nn.Module:
            return self.head

    with pytest.raises(MissingError, match="16 of 72"):
        matrices(Odd())
