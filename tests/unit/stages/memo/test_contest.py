"""Generating only for the selection: `select` gets the same rows, and less is generated."""

from dataclasses import replace
from typing import Any

import pyarrow as pa
import pytest

from meow_ray.config import Config, Memo, Select
from meow_ray.core.manifest import Artifact
from meow_ray.core.schema import SCHEMAS, TRUE_ANSWER
from meow_ray.engines import Completion, TeacherForced
from meow_ray.pipeline.graph import STAGES
from meow_ray.stages.memo.bounds import Choice
from meow_ray.stages.memo.contest import OpenWindow, byte_tokens, open_token_windows
from meow_ray.stages.memo.greedy import GrowingReplies
from meow_ray.stages.memo.preflight import _check_exact
from meow_ray.stages.memo.steps import SCORE_NAMES, MemoSteps
from meow_ray.stages.select.selection import select
from tests.support.memo import Facts, PlainModel, RecordingEngine, run_steps, tokenizer_of_words
from tests.support.tiny import KNOWN

CONTESTED: Facts = [
    (KNOWN[0][0], [KNOWN[0][1], "Jean-Paul Sartre", "Jean Genet of Paris", "7", "Jean-Jacques"]),
    (KNOWN[1][0], [KNOWN[1][1], "In Mai 1962", "In June 1954", "It was in 1900"]),
]
"""Questions with their true answers and candidates."""
WITH_RANDOM_MODEL = pytest.mark.parametrize("model_folder", ["random"], indirect=True)


def memo_table(scored: pa.Table) -> pa.Table:
    """Returns the rows that the stage writes for `CONTESTED`."""
    rows = [
        {
            "fact_id": str(number),
            "candidate_id": candidate,
            "question": row["question"],
            "text": text,
            **{name: score[name] for name in SCORE_NAMES},
        }
        for number, row in enumerate(scored.to_pylist())
        for candidate, (text, score) in enumerate(
            zip(row["texts"], row["scores"], strict=True), start=TRUE_ANSWER
        )
    ]
    return pa.Table.from_pylist(rows, schema=SCHEMAS["memo"])


def selected(scored: pa.Table, spec: Select) -> list[dict[str, Any]]:
    with select(memo_table(scored), spec).batches() as reader:
        return list(reader.read_all().to_pylist())


@pytest.mark.parametrize(
    ("window", "order", "top_k", "spec"),
    [
        ("token", "largest", 1, {"max_new_tokens": 40}),
        ("token", "largest", 9, {"max_new_tokens": 4, "statistic": "recall"}),
        ("token", "smallest", 2, {"max_new_tokens": "label", "statistic": "f1"}),
        ("token", "largest", 1, {"max_new_tokens": 20, "mode": "prefix", "rouge": "rougeL"}),
        ("character", "largest", 1, {"max_new_tokens": 40, "comparators": ("ma", "pz")}),
        ("character", "smallest", 1, {"max_new_tokens": "label", "template": "target"}),
    ],
)
def test_select_gets_the_same_rows_and_less_is_generated(
    engine: RecordingEngine, window: str, order: Any, top_k: int, spec: dict[str, Any]
):
    steps = MemoSteps(Memo(window=window, **spec), "chat")
    counts = []
    tables = []
    for choice in (None, Choice(top_k, order)):
        before = engine.engine.generated
        tables.append(run_steps(replace(steps, choice=choice), engine, CONTESTED))
        counts.append(engine.engine.generated - before)
    full, contested = tables
    choice_spec = Select(top_k=top_k, order=order)
    assert selected(contested, choice_spec) == selected(full, choice_spec)
    assert counts[1] <= counts[0]
    by_fact = zip(
        contested["generations"].to_pylist(), full["generations"].to_pylist(), strict=True
    )
    assert all(fewer <= more for fewer, more in by_fact)
    for all_scores, scores in zip(
        full["scores"].to_pylist(), contested["scores"].to_pylist(), strict=True
    ):
        for expected, score in zip(all_scores, scores, strict=True):
            low, high = score.pop("memo_low"), score.pop("memo_high")
            if score["memo"] is not None:
                assert low == high == score["memo"]
            if score["memo"] is None and score["num_windows"]:
                assert low - 1e-9 <= expected["memo"] <= high + 1e-9
                expected = (
                    expected | dict.fromkeys(SCORE_NAMES) | {"num_windows": expected["num_windows"]}
                )
            assert score == expected


class Rambling:
    """An engine that knows the answers with the word Lima, and rambles after any other."""

    max_model_len = 10_000

    def __init__(self) -> None:
        self.tokenizer = tokenizer_of_words()
        self.said = self.tokenizer(" no" * 200, add_special_tokens=False)["input_ids"]
        self.generated = 0

    def teacher_force(self, prompts: Any, answers: Any) -> list[TeacherForced]:
        known = ["Lima" in self.tokenizer.decode(answer) for answer in answers]
        return [
            TeacherForced([-0.5] * len(answer), [is_known] * len(answer), is_known)
            for answer, is_known in zip(answers, known, strict=True)
        ]

    def generate(self, prompts: Any, sampling: Any) -> list[list[Completion]]:
        limits = [spec.max_new_tokens for spec in sampling]
        self.generated += sum(limits)
        return [[Completion("", False, tuple(self.said[:limit]))] for limit in limits]


def test_candidates_that_fall_behind_are_not_generated_to_their_end():
    texts = ["It was Lima", "It is Rome", "It is Paris", "It is Lima"]
    engine = Rambling()
    spec = Memo(window="token", max_new_tokens=200)
    steps = MemoSteps(spec, "chat", choice=Choice(1, "largest"))
    scores = run_steps(steps, engine, [("Capital?", texts)])["scores"].to_pylist()[0]
    truth, rome, paris, lima = scores
    assert (lima["memo"], lima["memo_low"], lima["memo_high"]) == (1.0, 1.0, 1.0)
    assert truth["memo"] == 1.0  # all of it is greedy, so nothing had to be generated
    assert rome["memo"] is paris["memo"] is None
    assert max(rome["memo_high"], paris["memo_high"]) < 1
    windows = rome["num_windows"] + paris["num_windows"]
    assert 0 < engine.generated <= 16 * windows


@WITH_RANDOM_MODEL
@pytest.mark.parametrize("window", ["character", "token"])
def test_nothing_is_generated_for_a_true_answer(engine: RecordingEngine, window: str):
    steps = MemoSteps(Memo(window=window, max_new_tokens=30), "chat", choice=Choice(1, "largest"))
    (question, texts), *_ = CONTESTED
    scores = run_steps(steps, engine, [(question, texts[:1])])["scores"].to_pylist()
    assert engine.generated == []
    assert scores[0][0]["memo"] is None
    assert 0 <= scores[0][0]["memo_low"] < scores[0][0]["memo_high"] <= 1


@WITH_RANDOM_MODEL
@pytest.mark.parametrize("limit", [1, 16, 17, 50])
def test_a_reply_that_grows_is_the_reply_generated_at_once(
    engine: RecordingEngine, plain: PlainModel, limit: int
):
    prompts = [tuple(engine.tokenizer(text)["input_ids"]) for text in ("Who?", "In Mai", "Lima")]
    replies = GrowingReplies(engine)
    rounds = 0
    while not all(replies.is_complete(prompt, limit) for prompt in prompts):
        replies.grow(dict.fromkeys(prompts, limit))
        rounds += 1
    assert rounds <= 3
    assert [replies.after(p) for p in prompts] == [plain.generate(p, limit) for p in prompts]


class ShortContext:
    """An engine whose context has 12 tokens, and which repeats one token until it is full."""

    max_model_len = 12

    def generate(self, prompts: Any, sampling: Any) -> list[list[Completion]]:
        assert all(len(prompt) < self.max_model_len for prompt in prompts)
        rooms = [
            min(spec.max_new_tokens, self.max_model_len - len(prompt))
            for prompt, spec in zip(prompts, sampling, strict=True)
        ]
        return [[Completion("", False, (7,) * room)] for room in rooms]


def test_a_reply_ends_where_the_context_is_full():
    replies = GrowingReplies(ShortContext())  # type: ignore[arg-type]
    prompt = (1, 2, 3)
    for _ in range(2):
        replies.grow({prompt: 200})
        assert replies.after(prompt) == [7] * 9
        assert replies.is_complete(prompt, 200)


def test_byte_tokens_are_those_of_a_byte_each():
    class Vocabulary:
        def get_vocab(self) -> dict[str, int]:
            return {"<0x00>": 3, "<0xE4>": 9, "a": 1, "<0xe5>": 2}

    assert byte_tokens(Vocabulary()) == {3, 9}
    assert byte_tokens(tokenizer_of_words()) == frozenset()


@WITH_RANDOM_MODEL
def test_a_label_without_words_needs_no_generation(engine: RecordingEngine):
    tokenizer = engine.tokenizer
    sequence = list(tokenizer("ab.", add_special_tokens=False)["input_ids"])
    forced: Any = {"prompt": [0], "sequence": sequence, "start": 0}
    (result,) = engine.teacher_force([forced["prompt"]], [sequence])
    result = replace(result, is_greedy=[False] * 3, ends=False)
    windows = open_token_windows(tokenizer, forced, result, Memo(window="token", max_new_tokens=5))
    assert windows == [
        OpenWindow("b.", [], (0, *sequence[:1]), 5),
        OpenWindow(".", [], (0, *sequence[:2]), 0),
    ]


# --- the configuration --------------------------------------------------------------------------


def refusals(config: dict[str, Any], candidate_ids: tuple[int, ...] = (-1, 0)) -> list[str]:
    table = pa.table({"candidate_id": pa.array(candidate_ids, pa.int32())})
    known = {"candidates": Artifact("candidates", "", "digest", value=table)}
    return list(_check_exact(Config.model_validate(config), known))


def test_settings_that_need_no_score_or_all_scores_are_refused():
    selection = {"exact": "selection"}
    assert refusals({"memo": selection}) == []
    assert refusals({"memo": {"comparators": ["el"]}, "select": {"order": "random"}}, (-1,)) == []
    (random_order,) = refusals({"memo": selection, "select": {"order": "random"}})
    assert "(select.order=random). Set memo.exact=all." in random_order
    (continuations,) = refusals({"memo": selection | {"comparators": ["el", "ma"]}})
    assert continuations.startswith("`memo.comparators`: el needs the continuations")
    (nothing,) = refusals({"memo": selection}, (-1, -1))
    assert "nothing to select" in nothing


def fingerprints(config: dict[str, Any]) -> dict[str, Any]:
    valid = Config.model_validate({"memorize": {}} | config)
    return {
        stage.name: stage.ingredients(valid, dict.fromkeys(stage.input_names(valid), "digest"))
        for stage in STAGES
    }


def test_a_table_for_a_selection_depends_on_its_settings_and_no_other_table_does():
    plain = fingerprints({})
    contested = fingerprints({"memo": {"exact": "selection"}})
    assert {name for name in plain if plain[name] != contested[name]} == {"memo"}
    more = fingerprints({"memo": {"exact": "selection"}, "select": {"top_k": 1}})
    assert more["memo"] != contested["memo"]
    assert fingerprints({"select": {"top_k": 1}})["memo"] == plain["memo"]
