"""Our ROUGE against the Python package `rouge_score`, on the texts that MEMO compares."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from meow_ray.config import Memo
from meow_ray.models.text import ROUGE_TYPES, rouge
from meow_ray.stages.memo.score import windows

TEXTS = [
    "",
    " ",
    "...",
    "naïve café",
    "José’s naïve résumé",
    "I ❤️ Peru 👍🏽",
    "a-b_c d's",
    "running runner ran",
    "1,000.5 m²",
    "A",
]


def check_against_rouge_score(pairs: list[tuple[str, str]]) -> None:
    module = pytest.importorskip("rouge_score.rouge_scorer")
    scorer = module.RougeScorer(list(ROUGE_TYPES), use_stemmer=True)
    results = rouge([label for label, _ in pairs], [prediction for _, prediction in pairs])
    for (label, prediction), result in zip(pairs, results, strict=True):
        for name, score in scorer.score(label, prediction).items():
            expected = (score.precision, score.recall, score.fmeasure)
            assert result[name] == pytest.approx(expected), (name, label, prediction)


def test_rouge_equals_rouge_score_on_tofu(shared_data: Callable[[str], Path]):
    lines = shared_data("tofu/forget10_perturbed.jsonl").read_text().splitlines()[::12]
    pairs = []
    for row in map(json.loads, lines):
        pairs += [
            (row["answer"], row["paraphrased_answer"]),
            (row["paraphrased_answer"], row["perturbed_answer"][0]),
        ]
        cuts = windows(row["question"], row["answer"], Memo(stride=29))
        pairs += [(w.label, row["answer"][: len(w.label)]) for w in cuts]
    assert len(pairs) >= 200
    check_against_rouge_score(pairs)


def alternatives_of_tofu(shared_data: Callable[[str], Path]) -> list[tuple[str, str]]:
    """Returns all answers of TOFU with each other answer that TOFU or MEOW's authors publish."""
    pairs = []
    for name in ("forget10", "retain", "real_authors", "world_facts"):
        lines = shared_data(f"tofu/{name}_perturbed.jsonl").read_text().splitlines()
        for row in map(json.loads, lines):
            others = [row.get("paraphrased_answer", row["answer"]), *row["perturbed_answer"]]
            pairs += [(row["answer"], other) for other in others]
    for split in ("01", "05", "10"):
        for row in json.loads(shared_data(f"meow/inverted_forget{split}.json").read_text()):
            inverted = [text for key, text in row.items() if key.startswith("answer_")]
            pairs += [(row["undesired_answer"], text) for text in inverted]
    return pairs


def test_rouge_equals_rouge_score_on_all_answers_with_accents(shared_data: Callable[[str], Path]):
    """Foreign names are whole words here and fragments in `rouge_score`; the values are equal."""
    pairs = alternatives_of_tofu(shared_data)
    accented = [pair for pair in pairs if not all(text.isascii() for text in pair)]
    assert len(accented) > 300
    check_against_rouge_score(accented)


def test_rouge_equals_rouge_score_on_unusual_texts():
    check_against_rouge_score([(a, b) for a in TEXTS for b in TEXTS])
