from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from meow_ray.config import Memo
from meow_ray.engines import Completion, EngineSpec, Sampling, TeacherForced
from meow_ray.errors import MeowError
from meow_ray.models import refs
from meow_ray.stages.memo.score import extraction_likelihood, score_answer
from meow_ray.stages.memo.steps import SCORE_NAMES, MemoSteps, score_type
from tests.support.tiny import KNOWN, byte_level, chat, memorise, one_thread, wrapped

Facts = Sequence[tuple[str, list[str]]]
"""Questions, each with the answers to score."""

FACTS: Facts = [
    (KNOWN[0][0], [KNOWN[0][1], "Jean-Paul Sartre", "7"]),
    (KNOWN[1][0], [KNOWN[1][1], "In Mai 1962", "Zoë"]),
]
COMPARATORS = ("ma", "el", "em", "es")
KINDS = [("suffix", "raw"), ("suffix", "target"), ("prefix", "raw")]


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    with one_thread():
        yield


# --- models -------------------------------------------------------------------------------------


def tokenizer_of_words() -> Any:
    """A tokenizer of words and pieces of words: a text that is cut has other tokens than the whole."""
    from tokenizers import models as kinds
    from tokenizers import pre_tokenizers, trainers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<s>", "</s>", "<|user|>", "<|assistant|>", "<|end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    backend = byte_level(kinds.BPE())
    backend.train_from_iterator([f"{question} {answer}" for question, answer in KNOWN] * 2, trainer)
    return wrapped(backend, special)


@pytest.fixture(scope="module")
def memorised_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return memorise(
        tiny_model, tokenizer_of_words(), KNOWN, tmp_path_factory.mktemp("models") / "memorised"
    )


class Counting:
    """An engine that keeps what it was asked."""

    def __init__(self, folder: Path) -> None:
        self.engine = EngineSpec(
            refs.pin(str(folder), None, "model"), "transformers", "float32"
        ).load()
        self.tokenizer, self.max_model_len = self.engine.tokenizer, self.engine.max_model_len
        self.generated: list[tuple[tuple[int, ...], int]] = []
        self.forced: list[tuple[int, ...]] = []

    def generate(
        self, prompts: Sequence[Sequence[int]], sampling: Sequence[Sampling]
    ) -> list[list[Completion]]:
        self.generated += [
            (tuple(p), s.max_new_tokens) for p, s in zip(prompts, sampling, strict=True)
        ]
        return self.engine.generate(prompts, sampling)

    def teacher_force(
        self, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]
    ) -> list[TeacherForced]:
        self.forced += [(*p, *a) for p, a in zip(prompts, answers, strict=True)]
        return self.engine.teacher_force(prompts, answers)


class Plain:
    """The same model, one prompt at a time."""

    def __init__(self, folder: Path, device: str) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype="float32").to(device).eval()
        self.said: dict[tuple[tuple[int, ...], int], list[int]] = {}

    def tokens(self, text: str, special: bool = False) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=special)["input_ids"])

    def text(self, tokens: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(tokens), skip_special_tokens=True))

    def say(self, prompt: Sequence[int], limit: int) -> list[int]:
        import torch

        key = (tuple(prompt), limit)
        if key not in self.said:
            ids = torch.tensor([list(prompt)], device=self.model.device)
            out = self.model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=limit,
                do_sample=False,
                pad_token_id=self.tokenizer.pad_token_id,
            )[0, len(prompt) :].tolist()
            end = self.tokenizer.eos_token_id
            self.said[key] = out[: out.index(end)] if end in out else out
        return self.said[key]

    def is_greedy(self, prompt: Sequence[int], answer: Sequence[int]) -> list[bool]:
        import torch

        with torch.no_grad():
            logits = self.model(
                torch.tensor([[*prompt, *answer]], device=self.model.device)
            ).logits[0]
        return [
            int(logits[len(prompt) + i - 1].argmax()) == token for i, token in enumerate(answer)
        ]

    def answer(self, spec: Memo, question: str, answer: str) -> tuple[list[int], list[int]]:
        """Returns the tokens before the answer, and its own."""
        if spec.template == "target":
            return self.tokens(chat(question)), self.tokens(answer)
        whole, head = self.tokens(f"{question} {answer}", True), self.tokens(question, True)
        assert whole[: len(head)] == head
        return head, whole[len(head) :]

    def windows(
        self, spec: Memo, question: str, answer: str
    ) -> list[tuple[list[int], str, list[int]]]:
        """Returns for each window what the model sees, and the label as text and as tokens."""
        if spec.window == "token":
            head, tail = self.answer(spec, question, answer)
            whole = head + tail
            cuts = range(len(head) + 1, len(whole), spec.step)
            if spec.mode == "prefix":
                cuts = range(len(self.tokens("", True)) + 1, len(head), spec.step)
            return [(whole[:cut], self.text(whole[cut:]), whole[cut:]) for cut in cuts]
        if spec.mode == "prefix":
            pairs = [
                (question[:k], f"{question[k:]} {answer}")
                for k in range(1, len(question), spec.step)
            ]
        else:
            begin = f"{question} " if spec.template == "raw" else chat(question)
            pairs = [(begin + answer[:k], answer[k:]) for k in range(1, len(answer), spec.step)]
        return [
            (self.tokens(seen, spec.template == "raw"), cut_off, self.tokens(cut_off))
            for seen, cut_off in pairs
        ]

    def limit(self, spec: Memo, label: Sequence[int]) -> int:
        return len(label) if spec.max_new_tokens == "label" else spec.max_new_tokens

    def score(self, spec: Memo, question: str, answer: str) -> dict[str, Any]:
        cuts = self.windows(spec, question, answer)
        said = [self.say(prompt, self.limit(spec, tokens)) for prompt, _, tokens in cuts]
        found = score_answer(
            [label for _, label, _ in cuts], [self.text(tokens) for tokens in said], spec
        )
        greedy = self.is_greedy(*self.answer(spec, question, answer))
        first = min(k for k in range(len(greedy) + 1) if all(greedy[k:]))
        others = {
            "ma": sum(greedy) / len(greedy),
            "em": sum(greedy) / len(greedy),
            "es": 1 - first / len(greedy),
            "el": extraction_likelihood([tokens for _, _, tokens in cuts], said, spec.el_n),
        }
        return {name: getattr(found, name) for name in SCORE_NAMES} | {
            name: others[name] for name in spec.comparators
        }


RANDOM = pytest.mark.parametrize("folder", ["random"], indirect=True)
MEMORISED = pytest.mark.parametrize("folder", ["memorised"], indirect=True)


@pytest.fixture(scope="module", params=["random", "memorised"])
def folder(request: pytest.FixtureRequest) -> Path:
    return Path(
        request.getfixturevalue("tiny_model" if request.param == "random" else "memorised_model")
    )


@pytest.fixture(scope="module")
def loaded(folder: Path) -> tuple[Counting, Plain]:
    engine = Counting(folder)
    return engine, Plain(folder, engine.engine.device)


@pytest.fixture
def engine(loaded: tuple[Counting, Plain]) -> Counting:
    loaded[0].generated, loaded[0].forced = [], []
    return loaded[0]


@pytest.fixture
def plain(loaded: tuple[Counting, Plain]) -> Plain:
    return loaded[1]


def batch_of(facts: Facts, **columns: list[Any]) -> pa.Table:
    texts = pa.array([texts for _, texts in facts], pa.list_(pa.string()))
    questions = pa.array([question for question, _ in facts], pa.string())
    return pa.table({"question": questions, "texts": texts, **columns})


def run(steps: MemoSteps, engine: Counting, facts: Facts, **columns: list[Any]) -> pa.Table:
    prepared = steps.prepare(engine.tokenizer, batch_of(facts, **columns))
    return steps.finish(engine.tokenizer, steps.generate(engine, prepared))


def steps_of(**spec: Any) -> MemoSteps:
    return MemoSteps(Memo(**spec), "chat")


# --- against a plain loop -----------------------------------------------------------------------


@pytest.mark.parametrize("limit", [4, "label"])
@pytest.mark.parametrize(("mode", "template"), KINDS)
@pytest.mark.parametrize(
    ("window", "stride"), [("token", 1), ("token", 3), ("character", 5), ("character", 2)]
)
def test_every_score_is_that_of_one_window_at_a_time(
    engine: Counting,
    plain: Plain,
    window: str,
    stride: int,
    mode: str,
    template: str,
    limit: int | str,
):
    steps = steps_of(
        window=window,
        stride=stride,
        mode=mode,
        template=template,
        max_new_tokens=limit,
        statistic="f1",
        comparators=COMPARATORS,
        el_n=2,
    )
    found = run(steps, engine, FACTS)["scores"].to_pylist()
    for (question, texts), scores in zip(FACTS, found, strict=True):
        for text, score in zip(texts, scores, strict=True):
            assert score == pytest.approx(plain.score(steps.spec, question, text)), (question, text)


@pytest.mark.parametrize(("window", "stride"), [("token", 1), ("character", 3)])
def test_facts_that_share_a_question_do_not_disturb_each_other(
    engine: Counting, plain: Plain, window: str, stride: int
):
    question, answer = KNOWN[1]
    steps = steps_of(window=window, stride=stride, max_new_tokens="label", statistic="f1")
    found = run(
        steps,
        engine,
        [(question, [answer]), (question, ["In Mai"]), (question, ["In Mai 1962", answer])],
    )
    expected = [[answer], ["In Mai"], ["In Mai 1962", answer]]
    for scores, texts in zip(found["scores"].to_pylist(), expected, strict=True):
        assert scores == [pytest.approx(plain.score(steps.spec, question, text)) for text in texts]


@pytest.mark.parametrize("template", ["raw", "target"])
def test_pairs_are_scored_as_facts_of_one_answer_are(engine: Counting, template: str):
    steps = steps_of(window="token", template=template, max_new_tokens=4, comparators=COMPARATORS)
    pairs = [(question, text) for question, texts in FACTS for text in texts]
    scores = run(steps, engine, [(question, [text]) for question, text in pairs])[
        "scores"
    ].to_pylist()
    assert steps.score(engine, pairs) == [row[0] for row in scores]


# --- what the model is asked --------------------------------------------------------------------


def asked(plain: Plain, spec: Memo, question: str, text: str) -> dict[tuple[int, ...], int]:
    """Returns the beginnings where the model leaves an answer, with the tokens that some window still needs there."""
    out: dict[tuple[int, ...], int] = {}
    for prompt, _, label in plain.windows(spec, question, text):
        at, limit = 0, plain.limit(spec, label)
        while at < min(limit, len(label)) and plain.say([*prompt, *label[:at]], 1) == [label[at]]:
            at += 1
        beginning = (*prompt, *label[:at])
        if at < limit and (at < len(label) or plain.say(beginning, 1)):
            out[beginning] = max(limit - at, out.get(beginning, 0))
    return out


@MEMORISED
@pytest.mark.parametrize("limit", [4, 200, "label"])
@pytest.mark.parametrize(("mode", "template"), KINDS)
def test_a_memorised_answer_needs_no_generation(
    engine: Counting, mode: str, template: str, limit: int | str
):
    steps = steps_of(
        window="token", mode=mode, template=template, max_new_tokens=limit, comparators=COMPARATORS
    )
    found = run(steps, engine, [(question, [answer]) for question, answer in KNOWN])
    assert engine.generated == []
    assert len(engine.forced) == len(KNOWN)
    assert found["generations"].to_pylist() == [0] * len(KNOWN)
    for (score,) in found["scores"].to_pylist():
        assert (score["ma"], score["es"]) == (1.0, 1.0)
        if limit != 4:  # which cuts words
            assert (score["memo"], score["cv"]) == (1.0, 0.0)


@pytest.mark.parametrize("limit", [4, "label"])
@pytest.mark.parametrize(("mode", "template"), KINDS)
def test_token_windows_ask_once_for_each_place_where_the_model_leaves_an_answer(
    engine: Counting, plain: Plain, mode: str, template: str, limit: int | str
):
    steps = steps_of(window="token", mode=mode, template=template, max_new_tokens=limit)
    generations = run(steps, engine, FACTS)["generations"].to_pylist()
    for (question, texts), count in zip(FACTS, generations, strict=True):
        expected: dict[tuple[int, ...], int] = {}
        for text in texts:
            for beginning, tokens in asked(plain, steps.spec, question, text).items():
                expected[beginning] = max(tokens, expected.get(beginning, 0))
        assert count == len(expected)
        assert expected.items() <= set(engine.generated)
    assert len(engine.generated) == sum(generations)


@pytest.mark.parametrize("limit", [4, "label"])
@pytest.mark.parametrize(("mode", "template"), KINDS)
def test_character_windows_ask_once_for_what_several_answers_begin_with(
    engine: Counting, plain: Plain, mode: str, template: str, limit: int | str
):
    steps = steps_of(window="character", mode=mode, template=template, max_new_tokens=limit)
    question, texts = KNOWN[1][0], ["In Mai 1954", "In Mai 1962, or later", "In June"]
    generations = run(steps, engine, [(question, texts)])["generations"].to_pylist()
    expected: dict[tuple[int, ...], int] = {}
    windows = [window for text in texts for window in plain.windows(steps.spec, question, text)]
    for prompt, _, label in windows:
        expected[tuple(prompt)] = max(
            plain.limit(steps.spec, label), expected.get(tuple(prompt), 0)
        )
    assert sorted(engine.generated) == sorted(expected.items())
    assert generations == [len(expected)]
    assert len(expected) < len(windows)


@pytest.mark.parametrize("window", ["character", "token"])
def test_prefix_windows_of_further_answers_need_further_generations_only_behind_the_question(
    engine: Counting, window: str
):
    steps = steps_of(window=window, mode="prefix", max_new_tokens=3)
    question = "Who was it that said so?"
    one = run(steps, engine, [(question, ["Ann"])])["generations"].to_pylist()
    three = run(steps, engine, [(question, ["Ann", "Bob", "Cem"])])["generations"].to_pylist()
    assert one == three != [0]


@pytest.mark.parametrize(
    ("comparators", "forced"), [((), 0), (("el",), 0), (("ma",), 6), (("es", "el"), 6)], ids=str
)
def test_character_windows_read_the_answers_only_where_a_comparator_wants_it(
    engine: Counting, comparators: tuple[str, ...], forced: int
):
    steps = steps_of(comparators=comparators, max_new_tokens=2)
    scores = run(steps, engine, FACTS)["scores"].to_pylist()
    assert len(engine.forced) == forced
    assert {tuple(score) for row in scores for score in row} == {(*SCORE_NAMES, *comparators)}


@RANDOM
@pytest.mark.parametrize("window", ["character", "token"])
def test_the_system_message_of_the_target_stands_in_front(
    engine: Counting, plain: Plain, window: str
):
    steps = MemoSteps(Memo(window=window, template="target", max_new_tokens=2), "chat", "Be brief.")
    steps.score(engine, [("Who?", "Ann or Bob")])
    head = tuple(plain.tokens("<s><|system|>Be brief.<|end|><|user|>Who?<|end|><|assistant|>A"))
    assert engine.generated
    assert all(prompt[: len(head)] == head for prompt, _ in engine.generated)


# --- borders ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mode", "template"), KINDS)
@pytest.mark.parametrize("window", ["character", "token"])
def test_a_window_that_fills_the_context_is_refused(
    engine: Counting,
    plain: Plain,
    window: str,
    mode: str,
    template: str,
    monkeypatch: pytest.MonkeyPatch,
):
    steps, (question, texts) = steps_of(window=window, mode=mode, template=template), FACTS[0]
    prompts = [
        prompt for text in texts for prompt, _, _ in plain.windows(steps.spec, question, text)
    ]
    if window == "token":
        prompts += [
            [*head, *tail]
            for head, tail in (plain.answer(steps.spec, question, text) for text in texts)
        ]
    longest = max(map(len, prompts))
    said = f"A window of MEMO has {longest} tokens, the target reads {longest}; skip long facts"
    prepared = steps.prepare(engine.tokenizer, batch_of(FACTS))
    monkeypatch.setattr(engine, "max_model_len", longest)
    with pytest.raises(MeowError, match=said):
        steps.generate(engine, prepared)
    assert not engine.generated
    monkeypatch.setattr(engine, "max_model_len", longest + 1)
    assert steps.generate(engine, prepared).num_rows == len(FACTS)


def test_an_answer_that_only_a_comparator_reads_is_refused_when_it_fills_the_context(
    engine: Counting, plain: Plain, monkeypatch: pytest.MonkeyPatch
):
    facts = [("Who?", ["Ann or Bob or Cem"])]
    length = len(plain.tokens("Who? Ann or Bob or Cem", True))
    steps = steps_of(comparators=("ma",), stride=100)
    monkeypatch.setattr(engine, "max_model_len", length)
    with pytest.raises(MeowError, match=f"has {length} tokens"):
        steps.generate(engine, steps.prepare(engine.tokenizer, batch_of(facts)))
    plain_steps = steps_of(stride=100)
    assert (
        plain_steps.generate(
            engine, plain_steps.prepare(engine.tokenizer, batch_of(facts))
        ).num_rows
        == 1
    )


@pytest.mark.parametrize(
    ("question", "answer", "spec"),
    [
        ("Who?", "7", {"window": "character"}),
        ("Who?", "7", {"window": "character", "template": "target"}),
        ("Who?", "7", {"window": "token", "template": "target"}),
        ("?", "A long answer", {"window": "character", "mode": "prefix"}),
        ("?", "A long answer", {"window": "token", "mode": "prefix"}),
    ],
)
def test_an_answer_too_short_for_a_window_has_nulls(
    engine: Counting, question: str, answer: str, spec: dict[str, Any]
):
    steps = steps_of(**spec, comparators=COMPARATORS)
    found = run(steps, engine, [(question, [answer])])
    (score,) = found["scores"].to_pylist()[0]
    assert {name: score[name] for name in (*SCORE_NAMES, "el")} == dict.fromkeys(SCORE_NAMES) | {
        "num_windows": 0,
        "el": None,
    }
    assert None not in (score["ma"], score["em"], score["es"])
    assert engine.generated == []
    assert found["generations"].to_pylist() == [0]


@pytest.mark.parametrize("window", ["character", "token"])
@pytest.mark.parametrize("comparators", [(), COMPARATORS], ids=["plain", "comparators"])
def test_columns_of_the_rows_are_kept_and_tokens_are_not(
    engine: Counting, window: str, comparators: tuple[str, ...]
):
    steps = steps_of(window=window, comparators=comparators, max_new_tokens=2)
    table = run(steps, engine, FACTS, fact_id=["b", "a"], candidate_ids=[[-1, 0, 1], [-1, 4, 7]])
    assert table.column_names == [
        "question",
        "texts",
        "fact_id",
        "candidate_ids",
        "scores",
        "generations",
    ]
    assert table.select(["question", "texts"]).equals(batch_of(FACTS))
    assert table["candidate_ids"].to_pylist() == [[-1, 0, 1], [-1, 4, 7]]
    assert table["scores"].type == pa.list_(score_type(steps.spec))
    assert table["generations"].type == pa.int32()


@pytest.mark.parametrize("window", ["character", "token"])
@pytest.mark.parametrize("facts", [[], [("Who?", [])]], ids=["no facts", "no answers"])
def test_nothing_to_score_is_no_mistake(engine: Counting, window: str, facts: Facts):
    table = run(steps_of(window=window, comparators=COMPARATORS), engine, facts)
    assert table["scores"].to_pylist() == [[] for _ in facts]
    assert table["scores"].type == pa.list_(score_type(Memo(comparators=COMPARATORS)))
