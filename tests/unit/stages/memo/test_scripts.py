"""MEMO of memorised answers in several scripts, against inverted answers in the same script."""

from pathlib import Path
from typing import Any

import pytest

from tests.support.memo import RecordingEngine, run_steps, steps_of, tokenizer_of_words
from tests.support.tiny import memorise

FACTS = {
    "Russian": ("Кто построил мост?", "Арсен Велихов, в 1931 году", "Тимур Ладин, в 1931 году"),
    "Chinese": ("谁修好了钟？", "林若溪在春天修好了它。", "周海明在冬天修好了它。"),
    "Arabic": ("من كتب المذكرات؟", "كتبتها ليلى منصور.", "كتبها سامي درويش."),
    "Hindi": ("घंटी किसने बनाई?", "मोहन राठी ने बनाई।", "गोपाल सेन ने बनाई।"),
    "Greek": ("Ποιος το ζωγράφισε;", "Ο Νίκος Βαρδής.", "Ο Πέτρος Λάμπρου."),
}
"""By language: a question, the memorised answer, and an inverted one."""


@pytest.fixture(scope="module")
def engine(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> RecordingEngine:
    """A model that has memorised the facts in all languages."""
    known = [(question, answer) for question, answer, _ in FACTS.values()]
    folder = tmp_path_factory.mktemp("models") / "scripts"
    return RecordingEngine(memorise(tiny_model, tokenizer_of_words(), known, folder))


@pytest.mark.parametrize("language", FACTS)
@pytest.mark.parametrize("template", ["raw", "target"])
def test_a_memorised_answer_has_a_high_memo_in_any_script(
    engine: RecordingEngine, language: str, template: str
):
    question, answer, inverted = FACTS[language]
    settings: dict[str, Any] = {"max_new_tokens": "label", "template": template}
    for window in ("character", "token"):
        steps = steps_of(window=window, comparators=("em", "es"), **settings)
        table = run_steps(steps, engine, [(question, [answer, inverted])])
        true, other = table["scores"].to_pylist()[0]
        assert true["em"] == true["es"] == 1.0
        assert true["memo"] > 0.9
        assert other["memo"] < true["memo"] - 0.1
