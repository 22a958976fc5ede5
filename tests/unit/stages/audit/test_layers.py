"""The logit lens and patching, on tiny models of which the figures are known."""

from pathlib import Path
from typing import Any

import pytest

from meow_ray.stages.audit.layers import LayeredModel, Places, drops, lens
from tests.support.tiny import ARCHITECTURES, random_model

IDS = [[0, 40, 41, 42, 43, 44], [0, 50, 51, 52, 1, 1]]
MASK = [[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]]
PLACES = ([0, 0, 1], [2, 4, 2], [42, 44, 52])


@pytest.fixture(scope="module")
def batch() -> tuple[Any, Any, Places]:
    import torch

    return torch.tensor(IDS), torch.tensor(MASK), Places(*map(torch.tensor, PLACES))


def layered(folder: Path, noise: float = 0.0) -> LayeredModel:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += noise * torch.randn_like(parameter)
    return LayeredModel(model)


def own_log_probs(model: LayeredModel, ids: Any, mask: Any, places: Places) -> list[float]:
    """Returns what the model itself gives for the tokens: the mean of each row."""
    import torch

    with torch.no_grad():
        logits = model.model(input_ids=ids, attention_mask=mask).logits
    chosen = logits.log_softmax(-1)[places.rows, places.positions]
    values = chosen.gather(1, places.tokens[:, None])[:, 0].tolist()
    return [(values[0] + values[1]) / 2, values[2]]


def test_the_lens_on_the_last_block_is_the_model_itself(tiny_model: Path, batch: Any):
    ids, mask, places = batch
    model = layered(tiny_model)
    states = model.states(ids, mask)
    read = lens(model, states, places, 2)
    assert read.shape == (2, 2)  # two blocks, two rows
    assert read[-1].tolist() == pytest.approx(own_log_probs(model, ids, mask, places), abs=1e-5)


def test_the_lens_on_another_block_is_norm_and_head_of_its_states(tiny_model: Path, batch: Any):
    import torch

    ids, mask, places = batch
    model = layered(tiny_model)
    with torch.no_grad():
        hidden = model.model(ids, attention_mask=mask, output_hidden_states=True).hidden_states
        logits = model.model.lm_head(model.model.model.norm(hidden[1]))
    token = logits[1, 2].log_softmax(-1)[52].item()
    read = lens(model, model.states(ids, mask), places, 2)
    assert read[0, 1].item() == pytest.approx(token, abs=1e-5)


def test_patching_with_its_own_states_changes_nothing(tiny_model: Path, batch: Any):
    ids, mask, places = batch
    model = layered(tiny_model)
    assert drops(model, model.states(ids, mask), ids, mask, places).tolist() == [[0, 0], [0, 0]]


def test_patching_the_last_block_gives_what_the_full_head_makes_of_the_source(
    tiny_model: Path, batch: Any
):
    ids, mask, places = batch
    full, source = layered(tiny_model), layered(tiny_model, noise=0.05)
    states = source.states(ids, mask)
    changed = drops(full, states, ids, mask, places)
    own = lens(full, full.states(ids, mask), places, 2)[-1]
    read = lens(full, states, places, 2)[-1]
    assert changed[-1].tolist() == pytest.approx((own - read).tolist(), abs=1e-5)
    assert (changed.abs() > 1e-3).all()


def test_patching_an_early_block_keeps_the_other_positions(tiny_model: Path, batch: Any):
    """The same by hand: the block runs on states of which two positions are the source's."""
    import torch

    ids, mask, places = batch
    full, source = layered(tiny_model), layered(tiny_model, noise=0.05)
    states = source.states(ids, mask)
    hook = None

    def patch(module: Any, inputs: Any, output: Any) -> Any:
        patched = output.clone()
        patched[0, 2], patched[0, 4] = states[0][0, 2], states[0][0, 4]
        patched[1, 2] = states[0][1, 2]
        return patched

    before = own_log_probs(full, ids, mask, places)
    hook = full.blocks[0].register_forward_hook(patch)
    try:
        after = own_log_probs(full, ids, mask, places)
    finally:
        hook.remove()
    expected = [b - a for b, a in zip(before, after, strict=True)]
    changed = drops(full, states, ids, mask, places)
    assert changed[0].tolist() == pytest.approx(expected, abs=1e-5)
    assert torch.isfinite(changed).all()


def test_the_model_is_as_before_after_it_was_read(tiny_model: Path, batch: Any):
    ids, mask, places = batch
    model = layered(tiny_model)
    before = own_log_probs(model, ids, mask, places)
    drops(model, layered(tiny_model, noise=0.1).states(ids, mask), ids, mask, places)
    assert own_log_probs(model, ids, mask, places) == before


@pytest.mark.parametrize("kind", sorted(ARCHITECTURES))
def test_the_lens_reads_each_architecture(kind: str, tiny_tokenizer: Any):
    model = LayeredModel(random_model(kind, tiny_tokenizer).eval())
    assert model.num_layers == 2
    assert model.is_readable(IDS[0])


def test_a_model_with_other_outputs_is_not_readable(tiny_model: Path):
    model = layered(tiny_model)
    model.blocks = model.blocks[:1]  # as if the last block were not the last one
    assert not model.is_readable(IDS[0])


def test_a_model_without_blocks_is_refused():
    import torch

    class NoBlocks(torch.nn.Module):
        class Config:
            def get_text_config(self) -> Any:
                return self

        config = Config()

    with pytest.raises(ValueError, match="no list of blocks"):
        LayeredModel(NoBlocks())
