"""The direction in which a step of each objective moves probabilities and activations."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from tests.support.answers import (
    LENGTHS,
    READS,
    SETTINGS,
    VOCAB,
    Answer,
    Batch,
    example,
    gradients,
    log_p,
    log_softmax,
    loss,
)
from tests.support.formulas import control, demoted_by_hand, kl

PULLS = {
    "nll": {"retain": 1},
    "meow": {"inverted": 1},
    "idk": {"idk": 1},
    "gradient_ascent": {"forget": -1},
    "wga": {"forget": -1},
    "satimp": {"forget": -1},
    "npo": {"forget": -1},
    "simnpo": {"forget": -1},
    "dpo": {"idk": 1, "forget": -1},
    "altpo": {"inverted": 1, "forget": -1},
    "ihl": {"forget": -1},
    "undial": {"forget": -1},
    "ceu": {"forget": -1},
    "flat": {"idk": 1, "forget": -1},
}
"""By role: 1 if a step raises the probability of its tokens, -1 if it lowers it."""


def stepped(name: str, batch: Batch) -> dict[str, list[tuple[Answer, Answer]]]:
    """Returns the answers of each role before and after a small step down the gradient."""
    grads = gradients(name, batch, loss(name, batch))
    steepest = max(grad.abs().max().item() for of_role in grads.values() for grad in of_role)
    pairs: dict[str, list[tuple[Answer, Answer]]] = {role: [] for role in grads}
    for role, of_role in grads.items():
        for old, grad in zip(batch[role], of_role, strict=True):
            step = 0.1 / steepest * grad
            if name == "rmu":
                new = replace(old, hidden=old.hidden - step)
            else:
                new = replace(old, logits=old.logits - step)
            pairs[role].append((old, new))
    return pairs


def at_the_start() -> Batch:
    """Returns a batch of a model that has not been trained yet."""
    return {
        role: [
            replace(answer, before=answer.logits.detach(), hidden_before=answer.hidden.detach())
            for answer in answers
        ]
        for role, answers in example().items()
    }


@pytest.mark.parametrize(
    "batch", [example(), at_the_start()], ids=["during training", "at the start"]
)
@pytest.mark.parametrize("name", PULLS)
def test_a_step_lowers_probabilities_of_forget_answers_and_raises_learnt_ones(
    name: str, batch: Batch
):
    # undial has a fixed target, which a model during training may have passed already
    if name == "undial":
        batch = at_the_start()
    assert set(PULLS[name]) == set(READS[name])
    skipped = SETTINGS.get(name, {}).get("skip_tokens", 0)
    for role, answers in stepped(name, batch).items():
        for old, new in answers:
            change = [b - a for a, b in zip(log_p(old), log_p(new), strict=True)]
            assert change[:skipped] == [0.0] * len(change[:skipped])
            assert all(PULLS[name][role] * value > 0 for value in change[skipped:])


def held_wga(p: list[float], label: int) -> list[float]:
    """Returns the gradient of w · log p for a token, with a constant w = p^β."""
    weight = p[label] ** SETTINGS["wga"]["beta"]
    return [weight * ((token == label) - x) for token, x in enumerate(p)]


def held_satimp(p: list[float], label: int) -> list[float]:
    """Returns the gradient of w · log p for a token, with a constant w = p^β₁ · (1 − p)^β₂."""
    settings = SETTINGS["satimp"]
    weight = p[label] ** settings["beta1"] * (1 - p[label]) ** settings["beta2"]
    return [weight * ((token == label) - x) for token, x in enumerate(p)]


def held_ceu(p: list[float], label: int) -> list[float]:
    """Returns p − q, the gradient of the cross-entropy to q; q is p without the true token."""
    return [x - (0.0 if token == label else x / (1 - p[label])) for token, x in enumerate(p)]


@pytest.mark.parametrize("held", [held_wga, held_satimp, held_ceu])
def test_weights_and_targets_have_no_gradient(held: Callable[[list[float], int], list[float]]):
    name, batch = held.__name__.removeprefix("held_"), example()
    skipped = SETTINGS[name].get("skip_tokens", 0)
    total = sum(length - skipped for length in LENGTHS["forget"])
    for answer, grad in zip(
        batch["forget"], gradients(name, batch, loss(name, batch))["forget"], strict=True
    ):
        for i, (row, label) in enumerate(
            zip(answer.logits.tolist(), answer.labels.tolist(), strict=True)
        ):
            expected = (
                held([math.exp(x) for x in log_softmax(row)], label)
                if i >= skipped
                else [0.0] * VOCAB
            )
            assert (total * grad[i]).tolist() == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_a_step_on_kl_moves_each_distribution_towards_that_before_training():
    for old, new in stepped("kl_to_reference", example())["retain"]:
        for before, was, now in zip(
            old.before.tolist(), old.logits.tolist(), new.logits.tolist(), strict=True
        ):
            assert kl(before, now) < kl(before, was)


def test_kl_and_its_gradient_are_0_before_training():
    batch = at_the_start()
    value = loss("kl_to_reference", batch)
    assert value.item() == pytest.approx(0, abs=1e-7)
    assert all(g.abs().max() < 1e-7 for g in gradients("kl_to_reference", batch, value)["retain"])


def test_rmu_moves_activations_to_their_targets():
    steps = stepped("rmu", example())
    for old, new in steps["forget"]:
        wanted = control(SETTINGS["rmu"]["steering"], old.hidden)
        for was, now in zip(old.hidden.tolist(), new.hidden.tolist(), strict=True):
            assert math.dist(now, wanted) < math.dist(was, wanted)
    for old, new in steps["retain"]:
        for was, now, wanted in zip(
            old.hidden.tolist(), new.hidden.tolist(), old.hidden_before.tolist(), strict=True
        ):
            assert math.dist(now, wanted) < math.dist(was, wanted)


def test_rmu_is_0_at_its_targets():
    wanted = torch.tensor(control(4.0, torch.empty(0)))
    batch = {
        "forget": [
            replace(answer, hidden=wanted.expand_as(answer.hidden))
            for answer in example()["forget"]
        ],
        "retain": at_the_start()["retain"],
    }
    assert loss("rmu", batch).item() == pytest.approx(0, abs=1e-10)
    assert wanted.norm().item() == pytest.approx(SETTINGS["rmu"]["steering"])


def test_shred_lowers_the_demoted_tokens_and_leaves_all_others():
    batch = at_the_start()
    grads = gradients("shred", batch, loss("shred", batch))["forget"]
    for answer, grad in zip(batch["forget"], grads, strict=True):
        demoted = demoted_by_hand(answer, **SETTINGS["shred"])
        for position, label in enumerate(answer.labels.tolist()):
            if position in demoted:
                # the true token loses what all others gain
                assert grad[position, label] > 0
                assert (grad[position] < 0).sum() == VOCAB - 1
            else:
                assert grad[position].abs().max() < 1e-7


def test_tpo_lowers_the_tokens_of_facts_and_raises_the_others():
    for old, new in stepped("tpo", example())["forget"]:
        change = [b - a for a, b in zip(log_p(old), log_p(new), strict=True)]
        assert [value < 0 for value in change] == old.is_fact


def test_a_step_on_jensun_raises_the_tokens_of_the_refusal():
    batch = example()
    for refusal, (old, new) in zip(batch["idk"], stepped("jensun", batch)["forget"], strict=True):
        wanted = (refusal.labels.tolist() * len(old.labels))[: len(old.labels)]
        rows = zip(wanted, old.logits.tolist(), new.logits.tolist(), strict=True)
        assert all(log_softmax(now)[token] > log_softmax(was)[token] for token, was, now in rows)


def test_jensun_is_bounded_by_log_2():
    impossible = example(
        now={role: [-8192.0] * 4 for role in LENGTHS},
        before={role: [8192.0] * 4 for role in LENGTHS},
    )
    # what was certain before training has become impossible
    assert loss("js_to_reference", impossible).item() == pytest.approx(math.log(2))
    assert 0 < loss("jensun", impossible).item() <= 1.5 * math.log(2)


def test_pdu_flattens_the_logits():
    for old, new in stepped("pdu", example())["forget"]:
        for was, now in zip(old.logits, new.logits, strict=True):
            assert now.max() - now.mean() < was.max() - was.mean()


def test_pdu_ignores_tokens_that_a_model_masks():
    batch = example()
    masked = [
        replace(answer, logits=torch.nn.functional.pad(answer.logits, (0, 2), value=-torch.inf))
        for answer in batch["forget"]
    ]
    assert loss("pdu", {**batch, "forget": masked}).item() == loss("pdu", batch).item()


def test_uld_teaches_the_true_answers_and_flattens_all_others():
    pairs = stepped("uld", example())
    for old, new in pairs["forget"]:
        assert sum(log_p(new)) > sum(log_p(old))
    for old, new in [*pairs["inverted"], *pairs["retain"]]:
        for was, now in zip(old.logits, new.logits, strict=True):
            assert now.softmax(-1).max() < was.softmax(-1).max()


def test_uld_is_uniform_over_the_tokens_that_a_model_does_not_mask():
    batch = example()
    masked = {
        role: [
            replace(answer, logits=torch.nn.functional.pad(answer.logits, (0, 2), value=-torch.inf))
            for answer in batch[role]
        ]
        for role in READS["uld"]
    }
    assert loss("uld", masked).item() == pytest.approx(loss("uld", batch).item(), rel=1e-6)
    grads = gradients("uld", masked, loss("uld", masked))
    assert all(grad.isfinite().all() for of_role in grads.values() for grad in of_role)


def test_uld_of_a_uniform_model_is_the_cross_entropy_alone():
    equal = [0.0] * 4
    batch = example(now={role: equal for role in LENGTHS}, noise=0.0)
    assert loss("uld", batch).item() == pytest.approx(math.log(VOCAB), rel=1e-6)
