"""Every objective against its formula, worked out in plain Python token by token."""

import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from meow_ray.stages.train import losses
from meow_ray.stages.train.losses import Sequences
from meow_ray.stages.train.objectives import PRESETS

VOCAB, HIDDEN = 5, 3
LENGTHS = {
    "inverted": (3, 1, 4, 2),
    "forget": (2, 5, 1, 3),
    "retain": (4, 2, 2, 1),
    "idk": (1, 2, 3, 1),
}
"""Tokens of each answer."""

READS = {spec.function: spec.reads for spec in PRESETS.values()} | {
    "nll": ("retain",),
    "kl_to_reference": ("retain",),
}
SETTINGS = {
    "wga": {"beta": 1.5},
    "npo": {"beta": 0.5},
    "simnpo": {"beta": 2.5, "gamma": 0.25},
    "dpo": {"beta": 0.5},
    "altpo": {"beta": 0.5},
    "undial": {"beta": 3.0},
    "ceu": {"skip_tokens": 1},
    "rmu": {"layer": 0, "steering": 4.0, "alpha": 10.0},
}
"""None of them a preset's default."""

BIG = 8192.0
"""A logit beside which others are nothing in float32; bfloat16 has it."""
DTYPES = [torch.float32, torch.bfloat16]


@dataclass(frozen=True)
class Answer:
    labels: Tensor
    logits: Tensor
    before: Tensor
    """Logits of the model before training."""
    hidden: Tensor
    hidden_before: Tensor


Batch = dict[str, list[Answer]]
Truth = Mapping[str, Sequence[float]]
"""What the true tokens of each answer of a role have as logit, and its activations as value."""


def example(
    dtype: torch.dtype = torch.float32,
    now: Truth | None = None,
    before: Truth | None = None,
    noise: float = 1.0,
) -> Batch:
    """Draws a batch of four answers a role, where neither `now` nor `before` says otherwise."""
    generator = torch.Generator().manual_seed(0)

    def drawn(length: int, width: int) -> Tensor:
        return noise * torch.randn(length, width, generator=generator)

    def answer(role: str, number: int) -> Answer:
        length = LENGTHS[role][number]
        labels = torch.randint(VOCAB, (length,), generator=generator)
        made = []
        for truth in (now, before):
            logits, hidden = drawn(length, VOCAB), drawn(length, HIDDEN)
            if truth is not None:
                logits[torch.arange(length), labels] = truth[role][number]
                hidden[:] = truth[role][number]
            made += [logits.to(dtype), hidden.to(dtype)]
        return Answer(labels, made[0].requires_grad_(), made[2], made[1].requires_grad_(), made[3])

    return {
        role: [answer(role, i) for i in range(len(lengths))] for role, lengths in LENGTHS.items()
    }


def sequences(part: list[Answer], whole: list[Answer]) -> Sequences:
    return Sequences(
        torch.cat([one.logits for one in part]),
        torch.cat([one.labels for one in part]),
        torch.tensor([i for i, one in enumerate(part) for _ in one.labels]),
        len(part),
        sum(len(one.labels) for one in whole),
        len(whole),
        reference_log_probs=torch.tensor([p for one in part for p in log_p_before(one)]),
        reference_logits=torch.cat([one.before for one in part]),
        hidden=torch.cat([one.hidden for one in part]),
        reference_hidden=torch.cat([one.hidden_before for one in part]),
    )


def loss(name: str, batch: Batch, part: slice = slice(None)) -> Tensor:
    """Returns what a part of a batch gives; all of it if there is no `part`."""
    read = (sequences(batch[role][part], batch[role]) for role in READS[name])
    found = getattr(losses, name)(*read, **SETTINGS.get(name, {}))
    assert found.shape == ()
    assert found.dtype == torch.float32
    return found


def gradients(name: str, batch: Batch, value: Tensor) -> dict[str, list[Tensor]]:
    """Returns the gradient on each answer's logits, or on its activations where those are read."""
    leaves = {
        role: [one.hidden if name == "rmu" else one.logits for one in batch[role]]
        for role in READS[name]
    }
    found = iter(torch.autograd.grad(value, [leaf for role in leaves.values() for leaf in role]))
    return {role: [next(found) for _ in of] for role, of in leaves.items()}


# --- by hand ------------------------------------------------------------------------------------


def log_softmax(row: list[float]) -> list[float]:
    top = max(row)
    norm = top + math.log(math.fsum(math.exp(x - top) for x in row))
    return [x - norm for x in row]


def log_p(answer: Answer) -> list[float]:
    return [
        log_softmax(row)[label]
        for row, label in zip(answer.logits.tolist(), answer.labels.tolist(), strict=True)
    ]


def log_p_before(answer: Answer) -> list[float]:
    return [
        log_softmax(row)[label]
        for row, label in zip(answer.before.tolist(), answer.labels.tolist(), strict=True)
    ]


def mean(values: Iterable[float]) -> float:
    values = list(values)
    return math.fsum(values) / len(values)


def minus_log_sigmoid(x: float) -> float:
    return max(-x, 0.0) + math.log1p(math.exp(-abs(x)))


def cross_entropy(answers: list[Answer]) -> float:
    return -mean(p for one in answers for p in log_p(one))


def kl(p: list[float], q: list[float]) -> float:
    """Returns KL(p ‖ q) of two rows of logits."""
    return sum(math.exp(a) * (a - b) for a, b in zip(log_softmax(p), log_softmax(q), strict=True))


def kl_by_hand(answers: list[Answer]) -> float:
    return mean(
        kl(p, q)
        for one in answers
        for p, q in zip(one.before.tolist(), one.logits.tolist(), strict=True)
    )


def wga_by_hand(answers: list[Answer], beta: float) -> float:
    return mean(math.exp(p) ** beta * p for one in answers for p in log_p(one))


def log_ratio(answer: Answer) -> float:
    return sum(log_p(answer)) - sum(log_p_before(answer))


def npo_by_hand(answers: list[Answer], beta: float) -> float:
    return 2 / beta * mean(minus_log_sigmoid(-beta * log_ratio(one)) for one in answers)


def simnpo_by_hand(answers: list[Answer], beta: float, gamma: float) -> float:
    return (
        2
        / beta
        * mean(
            minus_log_sigmoid(-beta / len(one.labels) * sum(log_p(one)) - gamma) for one in answers
        )
    )


def preference(win: list[Answer], lose: list[Answer], beta: float) -> float:
    return mean(
        minus_log_sigmoid(beta * (log_ratio(good) - log_ratio(bad)))
        for good, bad in zip(win, lose, strict=True)
    )


def ihl_by_hand(answers: list[Answer]) -> float:
    values = []
    for one in answers:
        for row, label in zip(one.logits.tolist(), one.labels.tolist(), strict=True):
            p = [math.exp(x) for x in log_softmax(row)]
            values.append(1 + p[label] - max(p[:label] + p[label + 1 :]))
    return mean(values)


def undial_by_hand(answers: list[Answer], beta: float) -> float:
    values = []
    for one in answers:
        for row, before, label in zip(
            one.logits.tolist(), one.before.tolist(), one.labels.tolist(), strict=True
        ):
            before[label] -= beta
            teacher = [math.exp(x) for x in log_softmax(before)]
            values.append(-sum(q * p for q, p in zip(teacher, log_softmax(row), strict=True)))
    return mean(values)


def ceu_by_hand(answers: list[Answer], skip_tokens: int) -> float:
    values = []
    for one in answers:
        for i, (row, label) in enumerate(
            zip(one.logits.tolist(), one.labels.tolist(), strict=True)
        ):
            others = [token for token in range(VOCAB) if token != label]
            target = log_softmax([row[token] for token in others])
            found = [log_softmax(row)[token] for token in others]
            entropy = -sum(math.exp(q) * p for q, p in zip(target, found, strict=True))
            if i >= skip_tokens:
                values.append(entropy)
    return mean(values)


def flat_by_hand(good: list[Answer], bad: list[Answer]) -> float:
    def score(one: Answer) -> float:
        return math.tanh(mean(math.exp(p) for p in log_p(one)))

    return mean((score(b) - score(g)) / 2 for g, b in zip(good, bad, strict=True))


def control(steering: float, like: Tensor) -> list[float]:
    direction = torch.rand(HIDDEN, generator=torch.Generator().manual_seed(0)).tolist()
    norm = math.sqrt(sum(x * x for x in direction))
    return torch.tensor([steering * x / norm for x in direction]).to(like.dtype).tolist()


def rmu_by_hand(
    forget: list[Answer], retain: list[Answer], layer: int, steering: float, alpha: float
) -> float:
    def apart(found: list[float], wanted: list[float]) -> float:
        return sum((a - b) ** 2 for a, b in zip(found, wanted, strict=True)) / HIDDEN

    away = mean(
        apart(row, control(steering, one.hidden)) for one in forget for row in one.hidden.tolist()
    )
    kept = mean(
        apart(*rows)
        for one in retain
        for rows in zip(one.hidden.tolist(), one.hidden_before.tolist(), strict=True)
    )
    return away + alpha * kept


BY_HAND: dict[str, Callable[..., float]] = {
    "nll": cross_entropy,
    "kl_to_reference": kl_by_hand,
    "meow": cross_entropy,
    "idk": cross_entropy,
    "gradient_ascent": lambda forget: -cross_entropy(forget),
    "wga": wga_by_hand,
    "npo": npo_by_hand,
    "simnpo": simnpo_by_hand,
    "dpo": preference,
    "altpo": lambda inverted, forget, beta: 2 / beta * preference(inverted, forget, beta),
    "ihl": ihl_by_hand,
    "undial": undial_by_hand,
    "ceu": ceu_by_hand,
    "flat": flat_by_hand,
    "rmu": rmu_by_hand,
}


def by_hand(name: str, batch: Batch) -> float:
    return BY_HAND[name](*(batch[role] for role in READS[name]), **SETTINGS.get(name, {}))


def test_every_objective_is_worked_out_by_hand():
    assert set(BY_HAND) == set(READS)


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float16])
@pytest.mark.parametrize("name", BY_HAND)
def test_an_objective_is_its_formula(name: str, dtype: torch.dtype):
    batch = example(dtype)
    assert loss(name, batch).item() == pytest.approx(by_hand(name, batch), rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_says_which_roles_and_settings_its_function_takes(name: str):
    spec = PRESETS[name]
    parameters = inspect.signature(getattr(losses, spec.function)).parameters.values()
    keywords = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
    assert spec.reads == tuple(p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD)
    assert list(spec.settings) == keywords
    assert list(SETTINGS.get(spec.function, {})) == keywords
    assert len(parameters) == len(spec.reads) + len(keywords)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_reads_no_more_of_the_model_before_training_than_it_says(name: str):
    spec, batch = PRESETS[name], example()
    kept = {"none": (), "log_probs": ("reference_log_probs",), "model": ("reference_logits",)}[
        spec.reference
    ]
    if spec.layer is not None:
        kept = (*kept, "hidden", "reference_hidden")
    read = []
    for role in spec.reads:
        given = sequences(batch[role], batch[role])
        first = (given.logits, given.labels, given.owner, given.num_sequences, given.total_tokens)
        read.append(
            Sequences(
                *first, given.total_sequences, **{field: getattr(given, field) for field in kept}
            )
        )
    assert spec.load()(*read, **spec.settings).isfinite()


# --- where a step leads -------------------------------------------------------------------------

PULLS = {
    "nll": {"retain": 1},
    "meow": {"inverted": 1},
    "idk": {"idk": 1},
    "gradient_ascent": {"forget": -1},
    "wga": {"forget": -1},
    "npo": {"forget": -1},
    "simnpo": {"forget": -1},
    "dpo": {"idk": 1, "forget": -1},
    "altpo": {"inverted": 1, "forget": -1},
    "ihl": {"forget": -1},
    "undial": {"forget": -1},
    "ceu": {"forget": -1},
    "flat": {"idk": 1, "forget": -1},
}
"""Whether the tokens of a role get likelier."""


def stepped(name: str, batch: Batch) -> dict[str, list[tuple[Answer, Answer]]]:
    """Returns the answers of each role before and after a small step down the gradient."""
    found = gradients(name, batch, loss(name, batch))
    steepest = max(g.abs().max().item() for of in found.values() for g in of)
    out: dict[str, list[tuple[Answer, Answer]]] = {}
    for role, of in found.items():
        for old, g in zip(batch[role], of, strict=True):
            step = 0.1 / steepest * g
            logits, hidden = (
                (old.logits, old.hidden - step)
                if name == "rmu"
                else (old.logits - step, old.hidden)
            )
            new = Answer(old.labels, logits, old.before, hidden, old.hidden_before)
            out.setdefault(role, []).append((old, new))
    return out


def at_the_start() -> Batch:
    """Returns a batch of a model that has not been trained yet."""
    return {
        role: [
            Answer(one.labels, one.logits, one.logits.detach(), one.hidden, one.hidden.detach())
            for one in answers
        ]
        for role, answers in example().items()
    }


@pytest.mark.parametrize("batch", [example(), at_the_start()], ids=["under way", "at the start"])
@pytest.mark.parametrize("name", PULLS)
def test_a_step_makes_true_tokens_less_likely_and_learnt_ones_likelier(name: str, batch: Batch):
    if (
        name == "undial"
    ):  # it pulls to a fixed distribution: there may be less of the truth than it wants
        batch = at_the_start()
    assert set(PULLS[name]) == set(READS[name])
    skipped = SETTINGS.get(name, {}).get("skip_tokens", 0)
    for role, answers in stepped(name, batch).items():
        for old, new in answers:
            change = [b - a for a, b in zip(log_p(old), log_p(new), strict=True)]
            assert change[:skipped] == [0.0] * len(change[:skipped])
            assert all(PULLS[name][role] * value > 0 for value in change[skipped:])


def held_wga(p: list[float], label: int) -> list[float]:
    """Returns the gradient of w · log p for a token, with w = p^β."""
    weight = p[label] ** SETTINGS["wga"]["beta"]
    return [weight * ((token == label) - x) for token, x in enumerate(p)]


def held_ceu(p: list[float], label: int) -> list[float]:
    """Returns the gradient of the cross-entropy to q for a token, with q that of the others: p − q."""
    return [x - (0.0 if token == label else x / (1 - p[label])) for token, x in enumerate(p)]


@pytest.mark.parametrize("held", [held_wga, held_ceu])
def test_what_is_held_fixed_is_not_pulled_at(held: Callable[[list[float], int], list[float]]):
    name, batch = held.__name__.removeprefix("held_"), example()
    skipped = SETTINGS[name].get("skip_tokens", 0)
    total = sum(length - skipped for length in LENGTHS["forget"])
    for one, found in zip(
        batch["forget"], gradients(name, batch, loss(name, batch))["forget"], strict=True
    ):
        for i, (row, label) in enumerate(
            zip(one.logits.tolist(), one.labels.tolist(), strict=True)
        ):
            expected = (
                held([math.exp(x) for x in log_softmax(row)], label)
                if i >= skipped
                else [0.0] * VOCAB
            )
            assert (total * found[i]).tolist() == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_a_step_brings_every_distribution_nearer_to_the_one_before_training():
    for old, new in stepped("kl_to_reference", example())["retain"]:
        for before, was, now in zip(
            old.before.tolist(), old.logits.tolist(), new.logits.tolist(), strict=True
        ):
            assert kl(before, now) < kl(before, was)


def test_no_step_is_left_to_the_distribution_before_training():
    batch = at_the_start()
    value = loss("kl_to_reference", batch)
    assert value.item() == pytest.approx(0, abs=1e-7)
    assert all(g.abs().max() < 1e-7 for g in gradients("kl_to_reference", batch, value)["retain"])


def test_rmu_moves_forget_activations_to_the_control_vector_and_retain_ones_to_those_before_training():
    found = stepped("rmu", example())
    for old, new in found["forget"]:
        wanted = control(SETTINGS["rmu"]["steering"], old.hidden)
        for was, now in zip(old.hidden.tolist(), new.hidden.tolist(), strict=True):
            assert math.dist(now, wanted) < math.dist(was, wanted)
    for old, new in found["retain"]:
        for was, now, wanted in zip(
            old.hidden.tolist(), new.hidden.tolist(), old.hidden_before.tolist(), strict=True
        ):
            assert math.dist(now, wanted) < math.dist(was, wanted)


def test_rmu_is_nothing_where_all_is_as_it_wants():
    found = example()
    wanted = torch.tensor(control(4.0, torch.empty(0)))
    found["forget"] = [
        Answer(one.labels, one.logits, one.before, wanted.expand_as(one.hidden), one.hidden_before)
        for one in found["forget"]
    ]
    found["retain"] = at_the_start()["retain"]
    assert loss("rmu", found).item() == pytest.approx(0, abs=1e-10)
    assert wanted.norm().item() == pytest.approx(SETTINGS["rmu"]["steering"])


# --- extremes -----------------------------------------------------------------------------------

MIXED: Truth = {
    "inverted": (-BIG, -BIG, BIG, BIG),
    "idk": (-BIG, -BIG, BIG, BIG),
    "forget": (-BIG, BIG, -BIG, BIG),
    "retain": (-BIG, -BIG, BIG, BIG),
}
"""Answers that are impossible and answers that are certain, in every combination of two roles."""


@pytest.mark.parametrize(
    "before", [None, -BIG, BIG], ids=["before drawn", "before impossible", "before certain"]
)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", BY_HAND)
def test_probabilities_of_0_and_1_give_numbers_and_finite_gradients(
    name: str, dtype: torch.dtype, before: float | None
):
    batch = example(
        dtype, MIXED, None if before is None else {role: [before] * 4 for role in LENGTHS}
    )
    value = loss(name, batch)
    assert value.item() == pytest.approx(by_hand(name, batch), rel=1e-3, abs=1e-3)
    for role, of in gradients(name, batch, value).items():
        for answer, g in zip(batch[role], of, strict=True):
            assert g.dtype == dtype
            assert g.shape == (len(answer.labels), HIDDEN if name == "rmu" else VOCAB)
            assert g.isfinite().all()


def certain(dtype: torch.dtype, roles: Iterable[str]) -> Batch:
    """Returns a batch where the answers of `roles` are certain and others impossible; before, all tokens are alike."""
    return example(
        dtype, {role: [BIG if role in roles else -BIG] * 4 for role in LENGTHS}, noise=0.0
    )


OTHERS = VOCAB - 1
NEVER = BIG + math.log(OTHERS)
"""−log p of an impossible token; beside a certain one, that of any other is `BIG`."""
TRUTH = math.exp(-3) / (math.exp(-3) + OTHERS)
"""What is left to the true token where all are alike but for 3 logits."""


def preferred_wrongly(win: str) -> float:
    """Returns by how much the truth is preferred where it is certain, and what should be said is impossible."""
    pairs = zip(LENGTHS[win], LENGTHS["forget"], strict=True)
    return 0.5 * mean(
        good * (NEVER - math.log(VOCAB)) + bad * math.log(VOCAB) for good, bad in pairs
    )


LIMITS: dict[str, tuple[float, float]] = {
    "nll": (NEVER, 0),
    "kl_to_reference": (
        (NEVER + OTHERS * math.log(OTHERS)) / VOCAB - math.log(VOCAB),
        OTHERS / VOCAB * BIG - math.log(VOCAB),
    ),
    "meow": (NEVER, 0),
    "idk": (NEVER, 0),
    "gradient_ascent": (0, -NEVER),
    "wga": (0, 0),
    "npo": (2 / 0.5 * mean(math.log1p(VOCAB ** (0.5 * length)) for length in LENGTHS["forget"]), 0),
    "simnpo": (2 / 2.5 * math.log1p(math.exp(0.25)), 0),
    "dpo": (preferred_wrongly("idk"), 0),
    "altpo": (2 / 0.5 * preferred_wrongly("inverted"), 0),
    "ihl": (2, 1 - 1 / OTHERS),
    "undial": ((1 - TRUTH) * BIG, TRUTH * NEVER + (1 - TRUTH) * math.log(OTHERS)),
    "ceu": (BIG, math.log(OTHERS)),
    "flat": (math.tanh(1) / 2, -math.tanh(1) / 2),
}
"""The loss where the model says with certainty what it should not, and where it says what it should."""


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", LIMITS)
def test_the_loss_at_its_ends(name: str, dtype: torch.dtype):
    learnt = set(LENGTHS) - {"forget"}
    worst, best = loss(name, certain(dtype, ["forget"])), loss(name, certain(dtype, learnt))
    assert [worst.item(), best.item()] == pytest.approx(LIMITS[name], rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", LIMITS)
def test_only_some_objectives_pull_on_where_all_is_said_as_they_want(name: str, dtype: torch.dtype):
    batch = certain(dtype, set(LENGTHS) - {"forget"})
    found = gradients(name, batch, loss(name, batch))
    steepest = max(g.abs().max().item() for of in found.values() for g in of)
    # ascent has no end; the other two want some of the uniform distribution back that there was before
    assert (steepest > 1e-3) == (name in {"gradient_ascent", "undial", "kl_to_reference"})
    assert steepest < 1


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradient_ascent_falls_as_far_as_the_logits_go(dtype: torch.dtype):
    found = [
        loss(
            "gradient_ascent", example(dtype, {role: [-scale * BIG] * 4 for role in LENGTHS})
        ).item()
        for scale in (1, 2, 2**20)
    ]
    assert found == pytest.approx([-BIG, -2 * BIG, -(2.0**20) * BIG], rel=1e-3)


# --- micro-batches ------------------------------------------------------------------------------


@pytest.mark.parametrize("cuts", [(0, 1, 4), (0, 2, 4), (0, 3, 4), (0, 1, 2, 3, 4)])
@pytest.mark.parametrize("name", BY_HAND)
def test_however_a_batch_is_cut_its_parts_sum_to_the_whole(name: str, cuts: tuple[int, ...]):
    batch = example()
    whole = loss(name, batch)
    parts = [loss(name, batch, slice(*ends)) for ends in pairwise(cuts)]
    summed = torch.stack(parts).sum()
    torch.testing.assert_close(summed, whole)
    expected = gradients(name, batch, whole)
    for role, of in gradients(name, batch, summed).items():
        torch.testing.assert_close(of, expected[role])


# --- answers one after another ------------------------------------------------------------------


def three_answers(logits: Tensor | None = None, **more: Tensor) -> Sequences:
    """Returns answers of two, one and three tokens, in a global batch of 12 tokens in 4 answers."""
    logits = torch.zeros(6, VOCAB) if logits is None else logits
    return Sequences(
        logits, torch.tensor([0, 3, 4, 1, 1, 2]), torch.tensor([0, 0, 1, 2, 2, 2]), 3, 12, 4, **more
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_log_probabilities_equal_log_softmax_at_the_token_in_float32(dtype: torch.dtype):
    logits = (5 * torch.randn(6, VOCAB, generator=torch.Generator().manual_seed(0))).to(dtype)
    answers = three_answers(logits)
    expected = torch.log_softmax(logits.float(), -1).gather(1, answers.labels[:, None])[:, 0]
    assert answers.log_probs.dtype == torch.float32
    torch.testing.assert_close(answers.log_probs, expected)


def test_log_probabilities_by_hand():
    rows = [
        [0.5, 0.125, 0.125, 0.125, 0.125],
        [0.2, 0.2, 0.2, 0.3, 0.1],
        *[[0.1, 0.2, 0.3, 0.1, 0.3]] * 4,
    ]
    found = three_answers(torch.tensor(rows).log()).log_probs.exp()
    torch.testing.assert_close(found, torch.tensor([0.5, 0.3, 0.3, 0.2, 0.2, 0.3]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values_are_summed_and_averaged_by_answer(dtype: torch.dtype):
    answers, values = three_answers(), torch.tensor([1, 2, 4, 8, 16, 33], dtype=dtype)
    assert answers.sum_by_sequence(values).tolist() == [3, 4, 57]
    assert answers.mean_by_sequence(values).tolist() == [1.5, 4, 19]
    assert answers.sum_by_sequence(values).dtype == answers.mean_by_sequence(values).dtype == dtype


def test_a_mean_by_answer_pulls_each_token_by_its_share():
    values = torch.zeros(6, requires_grad=True)
    weights = torch.tensor([1.0, 10.0, 300.0])
    (three_answers().mean_by_sequence(values) * weights).sum().backward()
    assert values.grad is not None
    assert values.grad.tolist() == [0.5, 0.5, 10, 100, 100, 100]


def test_a_mean_is_a_share_of_that_over_the_global_batch():
    answers = three_answers()
    assert answers.token_mean(torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 9.0])).item() == 24 / 12
    assert answers.sequence_mean(torch.tensor([1.0, 2.0, 3.0])).item() == 6 / 4


def test_the_log_ratio_is_of_whole_answers():
    before = torch.tensor([0.5, 0.5, 1.0, 0.25, 0.5, 1.0])
    found = three_answers(reference_log_probs=before.log()).log_ratio.exp()
    torch.testing.assert_close(found, torch.tensor([0.2**2 / 0.25, 0.2, 0.2**3 / 0.125]))
