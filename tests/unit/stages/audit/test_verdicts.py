"""Verdicts on facts and attacks, from scores of facts and of controls."""

import random

import numpy as np
import pytest
from scipy.stats import binom

from meow_ray.config import Audit
from meow_ray.core.schema import AUDIT_SUMMARY_SCHEMA, VERDICTS_SCHEMA
from meow_ray.stages.audit.verdicts import AuditRow, Reading, fact_verdict, judge

BLACK_BOX, STATIC, COMPUTE = "black box", "static weights", "weights and compute"
SPEC = Audit(bootstrap_resamples=200)


def reading(attack="direct", beyond=-1.0, share=0.0, power=True, tier=BLACK_BOX):
    return Reading((attack, ""), tier, beyond, share, power)


STATIC_READING = reading("quantise", tier=STATIC)


@pytest.mark.parametrize(
    ("readings", "tier", "verdict", "attack"),
    [
        # above the limit, with power: the share of before decides, and equality is remembered
        ([reading(beyond=1, share=0.9)], BLACK_BOX, "remembered", "direct"),
        ([reading(beyond=1, share=0.5)], BLACK_BOX, "remembered", "direct"),
        ([reading(beyond=1, share=0.49)], BLACK_BOX, "partly", "direct"),
        # one probe above the limit is enough
        ([reading(), reading("cloze", 1, 0.8)], BLACK_BOX, "remembered", "cloze"),
        # the one that gives away most is named
        (
            [reading(beyond=9, share=0.6), reading("cloze", 1, 0.8)],
            BLACK_BOX,
            "remembered",
            "cloze",
        ),
        ([reading(beyond=9, share=0.1), reading("cloze", 1, 0.3)], BLACK_BOX, "partly", "cloze"),
        # a large share below the limit is no evidence, as a guess may give it
        ([reading(share=0.9), reading("cloze")], BLACK_BOX, "forgotten", "direct"),
        # exactly at the limit is not above it
        ([reading(beyond=0, share=0.9), reading("cloze")], BLACK_BOX, "forgotten", "direct"),
        # without power an attack cannot show that a fact is remembered whole
        ([reading(beyond=1, share=2, power=False)], BLACK_BOX, "partly", "direct"),
        ([reading(beyond=1, share=None, power=False)], BLACK_BOX, "partly", "direct"),
        # without power nothing is forgotten
        (
            [reading(power=False), reading("cloze", power=False)],
            BLACK_BOX,
            "inconclusive",
            "direct",
        ),
        # nor by one attack alone, in however many variants
        ([reading()], BLACK_BOX, "inconclusive", "direct"),
        ([reading(), reading()], BLACK_BOX, "inconclusive", "direct"),
        ([reading(), reading("cloze", power=False)], BLACK_BOX, "inconclusive", "direct"),
        ([reading(), reading("cloze")], BLACK_BOX, "forgotten", "direct"),
        # a tier needs an attack of its own to call a fact forgotten, but not to call it remembered
        ([reading(), reading("cloze")], STATIC, "inconclusive", "direct"),
        ([reading(), STATIC_READING], STATIC, "forgotten", "direct"),
        ([reading(beyond=1, share=0.9)], STATIC, "remembered", "direct"),
        # the judge flags a fact, but it is none of the attacks that clear one
        ([reading(), reading("judge", beyond=1, share=0.9)], BLACK_BOX, "remembered", "judge"),
        ([reading(), reading("judge")], BLACK_BOX, "inconclusive", "direct"),
        ([reading("judge")], BLACK_BOX, "inconclusive", "judge"),
        ([reading(), reading("judge", tier=STATIC)], STATIC, "inconclusive", "direct"),
        ([], BLACK_BOX, "inconclusive", None),
    ],
)
def test_rule_of_a_fact(readings, tier, verdict, attack):
    row = fact_verdict(readings, tier, 0.5, "no score")
    assert (row["verdict"], row["attack"]) == (verdict, attack)
    assert row["reason"]


# --- rows -----------------------------------------------------------------------------------------


def rows_of(side, scores, attack="direct", variant="", tier=BLACK_BOX):
    """Rows of one attack on one side; scores by fact id."""
    model, group = side
    return [
        AuditRow(attack, variant, tier, model, group, fact_id, 1, score)
        for fact_id, score in scores.items()
    ]


def facts(scores, prefix="f"):
    return {f"{prefix}{at}": score for at, score in enumerate(scores)}


def setting(after, attacks=("direct", "cloze"), control=None, n=40, tier=BLACK_BOX):
    """Rows of attacks on `n` facts that the original model gives away whole."""
    control = [0.1 * (at % 3) for at in range(n)] if control is None else control
    return [
        row
        for attack in attacks
        for side, scores in (
            (("before", "facts"), [1.0] * n),
            (("after", "facts"), after),
            (("retain_model", "facts"), control),
        )
        for row in rows_of(side, facts(scores), attack, tier=tier)
    ]


def verdicts_of(rows, **options):
    found = judge(rows, SPEC, **options).verdicts
    return {(row["fact_id"], row["tier"]): row["verdict"] for row in found}


def test_columns_are_those_of_the_schemas():
    judgement = judge(setting([0.1] * 40), SPEC)
    assert [*judgement.summary[0]] == AUDIT_SUMMARY_SCHEMA.names
    assert [*judgement.verdicts[0]] == VERDICTS_SCHEMA.names


def test_each_verdict_with_the_retain_model():
    found = verdicts_of(setting([1.0, 0.45, *[0.1] * 38]))
    assert found["f0", BLACK_BOX] == "remembered"
    assert found["f1", BLACK_BOX] == "partly"
    assert {found[f"f{at}", BLACK_BOX] for at in range(2, 40)} == {"forgotten"}


def test_a_judge_that_errs_in_one_of_twenty_replies_hides_nothing_and_adds_other_words():
    leaks = setting([1.0, 0.45, *[0.1] * 38])
    judged = [
        row
        for side, shares in (
            (("before", "facts"), [0.8] * 40),
            (("after", "facts"), [0.8, 0.3, 0.8, *[0.0, 0.1] * 18, 0.0]),
            (("retain_model", "facts"), [0.0, 0.1] * 20),
        )
        for row in rows_of(side, facts(shares), "judge", BLACK_BOX)
    ]
    without = verdicts_of(leaks)
    assert without["f2", BLACK_BOX] == "forgotten"
    assert verdicts_of([*leaks, *judged]) == without | {("f2", BLACK_BOX): "remembered"}


def test_the_share_of_before_is_counted_from_the_controls():
    for score, verdict in ((0.65, "remembered"), (0.55, "partly")):
        row = judge(setting([score] * 40, control=[0.2] * 40), SPEC).verdicts[0]
        assert row["share_of_before"] == pytest.approx((score - 0.2) / (1 - 0.2))
        assert row["verdict"] == verdict


def test_twins_are_the_control_without_a_retain_model():
    rows = [row for row in setting([1.0, *[0.1] * 39]) if row.model != "retain_model"]
    assert set(verdicts_of(rows).values()) == {"inconclusive"}
    for attack in ("direct", "cloze"):
        twins = {f"f{at % 8}#{at // 8}": 0.1 * (at % 3) for at in range(40)}
        rows += rows_of(("before", "twins"), twins, attack)
        # what the tuned model says about twins is no control
        rows += rows_of(("after", "twins"), dict.fromkeys(twins, 1.0), attack)
    found = verdicts_of(rows)
    assert found["f0", BLACK_BOX] == "remembered"
    assert [*found.values()].count("forgotten") == 39


def test_the_retain_model_goes_before_twins():
    rows = setting([0.1] * 40)
    with_twins = rows + rows_of(("before", "twins"), facts([1.0] * 40, "t"))
    assert judge(with_twins, SPEC).verdicts == judge(rows, SPEC).verdicts


def test_the_order_of_rows_does_not_matter():
    rows = setting([1.0, 0.45, *[0.1] * 38])
    shuffled = random.Random(0).sample(rows, len(rows))
    one, other = judge(rows, SPEC), judge(shuffled, SPEC)
    assert one.verdicts == other.verdicts
    assert one.summary == other.summary


@pytest.mark.parametrize("missing", [None, float("nan")])
def test_missing_scores_are_inconclusive_and_never_forgotten(missing):
    rows = setting([missing, *[0.1] * 39])
    judgement = judge(rows, SPEC)
    row = judgement.verdicts[0]
    assert (row["fact_id"], row["verdict"]) == ("f0", "inconclusive")
    assert row["reason"] == "no attack with controls has a score of this fact"
    assert judgement.summary[0]["num_facts"] == 39
    assert judgement.extracted(rows[40]) is None
    assert judgement.extracted(rows[41]) is False


def test_too_few_controls_are_inconclusive():
    judgement = judge(setting([1.0] * 9, n=9), SPEC)
    assert {row["reason"] for row in judgement.verdicts} == {
        "9 facts never taught; a verdict needs 10"
    }
    assert {row["verdict"] for row in judgement.summary} == {"inconclusive"}
    assert judgement.extracted(setting([1.0])[0]) is None
    assert set(verdicts_of(setting([1.0] * 10, n=10)).values()) == {"remembered"}


def test_a_single_attack_cannot_call_a_fact_forgotten():
    assert set(verdicts_of(setting([0.1] * 40, ("direct",))).values()) == {"inconclusive"}
    assert set(verdicts_of(setting([1.0] * 40, ("direct",))).values()) == {"remembered"}


def test_without_power_nothing_is_forgotten():
    rows = setting([0.1] * 40)
    weak = [row._replace(score=0.1) if row.model == "before" else row for row in rows]
    judgement = judge(weak, SPEC)
    assert {row["verdict"] for row in judgement.verdicts} == {"inconclusive"}
    assert {row["verdict"] for row in judgement.summary} == {"inconclusive"}


def test_tiers_are_cumulative():
    rows = setting([0.1] * 40) + setting([1.0, *[0.1] * 39], ("quantise",), tier=STATIC)
    found = verdicts_of(rows)
    assert (found["f0", BLACK_BOX], found["f0", STATIC]) == ("forgotten", "remembered")
    assert (found["f1", BLACK_BOX], found["f1", STATIC]) == ("forgotten", "forgotten")
    # a tier without attacks of its own has no verdict
    assert {tier for _, tier in found} == {BLACK_BOX, STATIC}
    # what a question gets, an attacker with the weights gets, too
    rows = setting([1.0, *[0.1] * 39]) + setting([0.1] * 40, ("relearn",), tier=COMPUTE)
    assert verdicts_of(rows)["f0", COMPUTE] == "remembered"


def test_other_models_are_judged():
    rows = setting([0.1] * 40)
    assert set(verdicts_of(rows, model="before").values()) == {"remembered"}
    flagged = judge(rows, SPEC, model="retain_model").flagged()
    assert flagged["any"] <= 0.05


def test_a_fact_is_judged_by_the_half_of_the_controls_that_it_is_not_in():
    # f0 is known to the control by chance; its own score must not lift its own threshold
    control = [0.9, *[0.0] * 39]
    judgement = judge(setting([0.9, *[0.0] * 39], control=control), SPEC)
    rows = {
        (row.model, row.fact_id): judgement.extracted(row)
        for row in setting([0.9, *[0.0] * 39], control=control)
    }
    assert rows["retain_model", "f0"] is True
    assert rows["after", "f0"] is True
    # the facts of the other half are judged by the half with f0, 5 % of whose scores are above
    assert rows["before", "f1"] is True
    assert judgement.summary[0]["never_taught"] == 1 / 40


# --- attacks --------------------------------------------------------------------------------------


def attack_row(after, control=None, n=40):
    return judge(setting(after, ("direct",), control, n), Audit()).summary[0]


def test_summary_of_an_attack():
    control = [0.0] * 40
    row = attack_row([1.0] * 10 + [0.0] * 30, control)
    assert (row["before"], row["after"], row["never_taught"], row["excess"]) == (1, 0.25, 0, 0.25)
    # the bootstrap of 40 trials with 10 successes
    assert row["excess_low"] == pytest.approx(binom.ppf(0.025, 40, 0.25) / 40, abs=0.03)
    assert row["excess_high"] == pytest.approx(binom.ppf(0.975, 40, 0.25) / 40, abs=0.03)
    assert (row["margin"], row["verdict"]) == (0, "partly")
    assert attack_row([1.0] * 20 + [0.0] * 20, control)["verdict"] == "remembered"
    assert attack_row([0.0] * 40, control)["verdict"] == "forgotten"


def test_few_facts_are_inconclusive():
    rows = setting([0.0] * 40, ("direct",), [0.0] * 40)
    few = [row for row in rows if row.model != "after" or row.fact_id in {"f0", "f1"}]
    row = judge(few, SPEC).summary[0]
    assert (row["verdict"], row["reason"]) == (
        "inconclusive",
        "2 facts with a score; a verdict needs 10",
    )


# --- missing scores -------------------------------------------------------------------------------


def without_scores(rows, reason, attack="quantise", variant="nf4", tier=STATIC):
    """Rows of one more attack, which gave no score about any fact of `rows`."""
    sides = {(row.model, row.group, row.fact_id) for row in rows}
    return [AuditRow(attack, variant, tier, *side, 0, None, reason) for side in sorted(sides)]


def test_an_attack_without_scores_is_inconclusive_for_its_reason():
    rows = setting([0.0] * 40, control=[0.0] * 40)
    judgement = judge(rows + without_scores(rows, "no_gpu"), SPEC)
    nf4 = judgement.summary[-1]
    assert (nf4["attack"], nf4["verdict"], nf4["reason"]) == ("quantise", "inconclusive", "no_gpu")
    assert (nf4["num_facts"], nf4["num_controls"]) == (0, 0)
    by_tier = {
        tier: {(row["verdict"], row["reason"]) for row in judgement.verdicts if row["tier"] == tier}
        for tier in (BLACK_BOX, STATIC)
    }
    # what the weaker attacker could not get is no evidence about the stronger one
    assert by_tier[STATIC] == {("inconclusive", "no_gpu")}
    assert {verdict for verdict, _ in by_tier[BLACK_BOX]} == {"forgotten"}


def test_a_fact_without_any_score_is_inconclusive_for_the_most_common_reason():
    rows = setting([0.0] * 40, attacks=("direct", "cloze", "prefix"), control=[0.0] * 40)
    reasons = {"direct": "too_long", "cloze": "too_long", "prefix": "answer_too_short"}
    changed = [
        row._replace(score=None, reason=reasons[row.attack])
        if (row.model, row.fact_id) == ("after", "f3")
        else row
        for row in rows
    ]
    (verdict,) = [row for row in judge(changed, SPEC).verdicts if row["fact_id"] == "f3"]
    assert (verdict["verdict"], verdict["reason"]) == ("inconclusive", "too_long")


@pytest.mark.parametrize(
    ("model", "kept"),
    [("before", 0), ("after", 0), ("after", 9), ("retain_model", 0), ("retain_model", 9)],
)
def test_too_few_scores_of_any_model_are_inconclusive_for_their_reason(model, kept):
    rows = [
        row._replace(score=None, reason="no_rewording")
        if row.model == model and int(row.fact_id[1:]) >= kept
        else row
        for row in setting([0.0] * 40, attacks=("direct",), control=[0.0] * 40)
    ]
    (summary,) = judge(rows, SPEC).summary
    assert (summary["verdict"], summary["reason"]) == ("inconclusive", "no_rewording")


def test_a_few_missing_scores_are_no_cause():
    rows = setting([0.0] * 40, attacks=("direct",), control=[0.0] * 40)
    rows[0] = rows[0]._replace(score=None, reason="too_long")
    (summary,) = judge(rows, SPEC).summary
    assert summary["verdict"] == "forgotten"
    assert "too_long" not in summary["reason"]


def test_too_few_facts_are_said_as_such_even_if_scores_are_missing_too():
    rows = setting([0.0] * 4, attacks=("direct",), control=[0.0] * 4, n=4)
    rows[-1] = rows[-1]._replace(score=None, reason="too_long")
    (summary,) = judge(rows, SPEC).summary
    assert summary["reason"] == "3 facts never taught; a verdict needs 10"


# --- calibration ----------------------------------------------------------------------------------


def simulated(seed, twins, n=40, probes=20):
    """Scores of 20 probes: log-probabilities, and shares with many ties."""
    rng = np.random.default_rng(seed)
    rows = []
    for probe in range(probes):

        def draw(number, is_known, probe=probe):
            if probe % 2:
                return rng.normal(-0.3 if is_known else -3, 0.2 if is_known else 0.8, number)
            return rng.binomial(5, 0.95 if is_known else 0.02 * (probe % 10), number) / 5

        control = (
            (("before", "twins"), {f"f{at % n}#{at // n}": 0 for at in range(n * twins)})
            if twins
            else (("retain_model", "facts"), facts([0] * n))
        )
        for side, ids in (
            (("before", "facts"), facts([0] * n)),
            (("after", "facts"), facts([0] * n)),
            control,
        ):
            scores = map(float, draw(len(ids), side == ("before", "facts")))
            tier = (BLACK_BOX, STATIC, COMPUTE)[probe * 3 // probes]
            rows += rows_of(side, dict(zip(ids, scores, strict=True)), f"a{probe}", tier=tier)
    return rows


@pytest.mark.parametrize("twins", [0, 3])
def test_at_most_5_percent_of_facts_never_taught_are_flagged_on_any_tier(twins):
    repeats, n = 30, 40
    judged = [judge(simulated(seed, twins), SPEC) for seed in range(repeats)]
    flagged = sum(judgement.flagged()["any"] * n for judgement in judged)
    # facts share their controls, so this allows more than independent facts need
    assert flagged <= binom.ppf(0.99, repeats * n, 0.05)
    assert flagged > 0
    forgotten = np.mean([row["verdict"] == "forgotten" for each in judged for row in each.verdicts])
    assert forgotten > 0.9


@pytest.mark.parametrize("twins", [0, 3])
def test_memorised_facts_are_remembered(twins):
    found = verdicts_of(simulated(1, twins), model="before")
    assert np.mean([verdict == "remembered" for verdict in found.values()]) >= 0.95


def test_clean_attacks_are_called_forgotten():
    verdicts = [
        row["verdict"] for seed in range(6) for row in judge(simulated(seed, 0), SPEC).summary
    ]
    assert verdicts.count("forgotten") >= 0.8 * len(verdicts)
    assert "remembered" not in verdicts
