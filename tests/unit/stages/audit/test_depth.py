"""The attack depth: what an actor measures, and the scores of the rows."""

from pathlib import Path
from typing import Any

import pytest

from meow_ray.engines import EngineSpec
from meow_ray.models import refs
from meow_ray.stages.audit import depth
from meow_ray.stages.audit.attack import Outcome, Subject
from meow_ray.stages.audit.depth import DepthSteps, Figure, PairSpec
from tests.support.tiny import KNOWN, memorise

SUBJECTS = [Subject(str(i), "facts", *pair) for i, pair in enumerate(KNOWN)]
TWIN = Subject("0#0", "twins", "Author of Nana?", "Émile Zola")


def spec(folder: Path) -> EngineSpec:
    return EngineSpec(refs.pin(str(folder), None, "model"), "transformers", "float32")


@pytest.fixture(scope="module")
def taught(tiny_model: Path, tiny_tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "memorised"
    return memorise(tiny_model, tiny_tokenizer, KNOWN, folder)


def examined(source: Path, full: Path | None, *wanted: str) -> list[dict[str, Any]]:
    pair = PairSpec(spec(source), spec(full) if full else None).load()
    steps = DepthSteps(wanted, "chat")
    rows: list[dict[str, Any]] = steps.generate(pair, depth.table_of(SUBJECTS)).to_pylist()
    return sorted(rows, key=lambda row: row["fact_id"])


def test_the_lens_alone_loads_one_model(taught: Path):
    rows = examined(taught, None, "lens")
    for row in rows:
        assert len(row["lens_by_layer"]) == 2
        assert row["lens_by_layer"][-1] > -0.3  # nearly sure of each byte of what it memorised
        assert row["question_by_layer"] is row["rewording_by_layer"] is None


def test_the_score_of_a_model_that_was_never_taught_is_0(taught: Path, tiny_model: Path):
    """The random model has nothing; patched with it, the taught one loses all at its last block."""
    from meow_ray.stages.audit.depth_score import depth_score

    for row in examined(tiny_model, taught, "lens", "question", "rewording"):
        assert row["lens_by_layer"][-1] < -3
        drops = row["question_by_layer"]
        assert drops[-1] > 1  # nats per byte
        assert depth_score(drops, drops) == 1
        assert len(row["rewording_by_layer"]) == 2
        assert row["rewording_by_layer"] != drops


def test_the_taught_model_itself_loses_nothing(taught: Path):
    for row in examined(taught, taught, "question"):
        assert row["lens_by_layer"] is None
        assert row["question_by_layer"] == [0, 0]


def test_batches_do_not_change_the_figures(
    taught: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
):
    together = examined(tiny_model, taught, "lens", "question")
    monkeypatch.setattr(depth, "BATCH", 1)
    for row, alone in zip(together, examined(tiny_model, taught, "lens", "question"), strict=True):
        for name in ("lens_by_layer", "question_by_layer"):
            assert row[name] == pytest.approx(alone[name], abs=1e-4)


def test_models_of_other_shapes_cannot_be_patched(
    taught: Path, tiny_tokenizer: Any, tmp_path: Path
):
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(taught, num_hidden_layers=3)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    for row in examined(tmp_path, taught, "lens", "question"):
        assert len(row["lens_by_layer"]) == 3
        assert row["question_by_layer"] is None
        assert (row["lens_reason"], row["question_reason"]) == (None, "different_models")


def test_a_row_that_does_not_fit_has_no_figures(taught: Path):
    pair = PairSpec(spec(taught)).load()
    pair.max_model_len = 40
    long = Subject("long", "facts", "Who? " * 10, "Nobody")
    table = depth.table_of([SUBJECTS[2], long])
    rows = DepthSteps(("lens",), "chat").generate(pair, table).to_pylist()
    figures = {row["fact_id"]: (row["lens_by_layer"], row["lens_reason"]) for row in rows}
    assert figures["long"] == (None, "too_long")
    assert len(figures["2"][0]) == 2
    assert figures["2"][1] is None


def test_a_model_whose_layers_cannot_be_read_is_missing(
    taught: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(depth.LayeredModel, "is_readable", lambda self, tokens: False)
    for row in examined(taught, taught, "lens", "question"):
        assert row["lens_by_layer"] is row["question_by_layer"] is None
        assert row["lens_reason"] == row["question_reason"] == "unsupported_model"
        assert row["rewording_reason"] is None  # it was not wanted


# --- scores ---------------------------------------------------------------------------------------


class FakeAudit:
    """What `depth_rows` reads of its audit."""

    def __init__(self, *models: str) -> None:
        self.models = dict.fromkeys(models)

    def asked_of(self, model: str) -> list[Subject]:
        return [SUBJECTS[0], TWIN] if model == "before" else [SUBJECTS[0]]


def outcomes(
    monkeypatch: pytest.MonkeyPatch, audit: FakeAudit, figures: dict[str, dict[str, Any]]
) -> dict[tuple[str, ...], Outcome]:
    asked: dict[str, tuple[str, ...]] = {}

    def measured(_: Any, model: str, wanted: tuple[str, ...]) -> Any:
        asked[model] = wanted
        of_model = {name: Figure(None) for name in depth.FIGURES}
        for name, found in figures[model].items():
            is_reason = isinstance(found, str)
            of_model[name] = Figure(None, found) if is_reason else Figure(found)
        return {(subject.group, subject.fact_id): of_model for subject in audit.asked_of(model)}

    monkeypatch.setattr(depth, "_figures", measured)
    rows = list(depth.depth_rows(audit))  # type: ignore[arg-type]
    assert asked["before"] == ("lens",)
    assert {row.tier for row in rows} == {"static weights"}
    return {(row.variant, row.model, row.group): row.outcome for row in rows}


def test_scores_with_a_retain_model(monkeypatch: pytest.MonkeyPatch):
    figures = {
        "before": {"lens": [-5.0, -1.0]},
        "after": {"lens": [-4.0, -6.0], "rewording": [1.0, 1.0]},
        "retain_model": {"lens": [-7.0, -8.0], "question": [1.0, 4.0], "rewording": [0.5, 4.0]},
    }
    found = outcomes(monkeypatch, FakeAudit("before", "after", "retain_model"), figures)
    assert {key: outcome.score for key, outcome in found.items()} == {
        ("logit lens", "before", "facts"): -1,
        ("logit lens", "before", "twins"): -1,
        ("logit lens", "after", "facts"): -4,  # of the first block, which the output hides
        ("logit lens", "retain_model", "facts"): -7,
        ("patching", "before", "facts"): 1,
        ("patching", "before", "twins"): None,
        ("patching", "after", "facts"): pytest.approx(1 - 2 / 5),
        ("patching", "retain_model", "facts"): pytest.approx(1 - 4.5 / 5),
    }


def test_patching_has_no_scores_without_a_retain_model(monkeypatch: pytest.MonkeyPatch):
    figures = {"before": {"lens": [-1.0]}, "after": {"lens": "too_long"}}
    found = outcomes(monkeypatch, FakeAudit("before", "after"), figures)
    for model, group in (("before", "facts"), ("before", "twins"), ("after", "facts")):
        assert found["patching", model, group] == Outcome(None, 0, reason="no_retain_model")
    assert found["logit lens", "after", "facts"] == Outcome(None, 1, reason="too_long")
    assert found["logit lens", "before", "facts"] == Outcome(-1, 1)


@pytest.mark.parametrize(
    ("after", "retain_model", "reason"),
    [
        ({"rewording": [1.0]}, {"question": [0.01], "rewording": [0.01]}, "nothing_known"),
        ({"rewording": "too_long"}, {"question": [1.0], "rewording": [1.0]}, "too_long"),
        (
            {"rewording": [1.0]},
            {"question": "different_models", "rewording": "different_models"},
            "different_models",
        ),
    ],
)
def test_patching_says_why_a_fact_has_no_score(
    monkeypatch: pytest.MonkeyPatch,
    after: dict[str, Any],
    retain_model: dict[str, Any],
    reason: str,
):
    figures = {"before": {}, "after": after, "retain_model": retain_model}
    found = outcomes(monkeypatch, FakeAudit("before", "after", "retain_model"), figures)
    outcome = found["patching", "after", "facts"]
    assert (outcome.score, outcome.reason) == (None, reason)
