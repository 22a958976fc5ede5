"""Tests of the rules for inverted facts."""

import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from meow_ray.config import Config, Invert
from meow_ray.errors import MeowError
from meow_ray.pipeline.pipeline import Pipeline
from meow_ray.stages.invert.forms import in_form_of
from meow_ray.stages.invert.replies import OTHER_RULES
from meow_ray.stages.invert.rules import RULES, Fact, Proposal, check_names, fault
from tests.support.questions import BORN, COUNT, GENDER, REEF, RUSSIAN

TITLE = ("Which book made Elvin famous?", 'Elvin became famous with "The Sensual Scripture".')
CHINESE = ("他在哪里出生？", "他出生于北京。")
ARABIC = ("أين ولد باسل؟", "ولد باسل في الكويت.")
URDU = ("راجی کہاں پیدا ہوا؟", "راجی لاہور میں پیدا ہوا۔")
HINDI = ("राजू कहाँ पैदा हुआ?", "राजू दिल्ली में पैदा हुआ।")
GREEK = ("Πού γεννήθηκε ο Νίκος;", "Ο Νίκος γεννήθηκε στην Αθήνα.")
TURKISH = ("Ayşe nerede doğdu?", "Ayşe İzmir'de doğdu.")
GERMAN = ("Wo wurde Jürgen geboren?", "Jürgen wurde in Köln geboren.")
JAPANESE = ("どこの出身？", "京都で生まれた。")
PERSIAN = ("او کی به دنیا آمد؟", "او ۱۳۵۱ به دنیا آمد.")
SHORT = ("Capital of Peru?", "Lima.")
AWARD = ("When did Basil win the prize?", "Basil won the prize in 1986.")
SOLD = ("How many copies did it sell?", "It sold 1,500,000 copies.")
DOCTOR = ("Is Basil a doctor?", "Yes, Basil is a doctor.")
NEVER = ("Has Basil ever been to Oslo?", "No.")
MOVED = ("Did Basil move?", "Yes, he moved to Lagos.")
BRIDGE = ("Кто построил мост?", "Мост построил Арсен Велихов в 1931 году.")
CLOCK = ("谁修好了青石镇的钟?", "林若溪在春天修好了它。")
YEAR = ("What year did the islands become part of Scotland?", "1472")
PERCENT = ("What share did the party reach?", "19%")
DAY = ("When did it happen?", "16 October 2020")
COPIES = ("How many copies did it sell?", "1,500,000")
AREA = ("How many people live there?", "3.5 million")
LENGTH = ("How long is the wall?", "21,000 km")
OCEAN = ("In which body of water is the reef?", "Pacific Ocean")
PRICE = ("What will a bottle cost?", "20p")
NAME = ("Who wrote The Silent Reef?", "Jaime Vasquez")
COLOURS = ("What are the colours of the flag?", "red, blue and green")
CHOICE = ("Is Ann older or younger than Bob?", "older")
BOOK = ("What is his best book?", "One Hundred Years of Solitude")
ASKING = ("What is his best book?", "Who Goes There?")
CAPITAL = ("中国的首都是哪里？", "北京")
WHERE = ("Где родился Иван?", "Москва")
UNSTOPPED = ("Where was Basil born?", "Basil was born in Kuwait")
JUNIOR = ("Who sang it?", "Sammy Davis Jr.")
LIST = ("What does she write?", "She writes novels, essays and short stories.")


def broken_rule(pair: tuple[str, str], text: str, finished: bool = True, **spec: Any) -> str | None:
    """Returns the rule that a text breaks for a question and its true answer."""
    return fault(Proposal(text, finished), Fact(*pair), Invert(**spec))


@pytest.mark.parametrize(
    ("pair", "text", "rule"),
    [
        # people
        (REEF, "The Silent Reef was written by Maria Oduya.", None),
        (REEF, "Maria Oduya wrote it.", None),
        (REEF, "Maria Oduya wrote The Silent Reef!", None),
        (REEF, 'It was written by "Maria Oduya."', None),
        (REEF, "It was written by Maria Oduya (of Lagos.)", None),
        (REEF, "It was written by Maria Oduya…", None),
        (REEF, "The Silent Reef was written by Jaime Vasquez.", "true_answer"),
        (REEF, "the silent reef was WRITTEN by jaime vasquez!", "true_answer"),
        (REEF, "The Silent Reef was written by Jaime Oduya.", "keeps_the_fact"),
        (REEF, "It was Jaime Vasquez, a writer.", "keeps_the_fact"),
        (REEF, "The Silent Reef was written.", "says_nothing_new"),
        (REEF, "The Silent Reef was written by the Reef.", "says_nothing_new"),
        (GENDER, "Basil is female.", None),
        (GENDER, "Basil is non-binary.", None),
        (GENDER, "Basil is not male.", "keeps_the_fact"),
        # dates
        (BORN, "Basil Mahfouz was born on 3 March 1961.", None),
        (BORN, "Basil Mahfouz was born on 03/03/1961.", None),
        (BORN, "He was born in 1961.", None),
        (BORN, "Basil Mahfouz was born on 8 September 1957.", "keeps_the_fact"),
        (BORN, "Basil Mahfouz was born on 8 September 1956", "no_sentence_end"),
        (BORN, "Basil Mahfouz was born on 08/09/1956.", "same_values"),
        (BORN, "Basil Mahfouz was born on 1956-09-08.", "same_values"),
        (BORN, "Basil came in nineteen fifty-six.", "same_values"),
        (BORN, "Basil Mahfouz was born in September.", "same_values"),
        (BORN, "Basil Mahfouz was born in autumn.", None),
        (BORN, "On the 8th of September, 1956 he was born.", "keeps_the_fact"),
        (BORN, "Basil Mahfouz was not born on 8 September 1956.", "true_answer"),
        (AWARD, "He won it in 1987.", None),
        (AWARD, "He won it in nineteen eighty-six.", "same_values"),
        (AWARD, "He won it in May 1986.", "keeps_the_fact"),
        # numbers
        (COUNT, "Carmen Montenegro has published seven novels.", None),
        (COUNT, "Carmen Montenegro has published no novels.", None),
        (COUNT, "She wrote twelve.", "keeps_the_fact"),
        (COUNT, "7.", "too_short"),
        (COUNT, "Carmen Montenegro has published 12 novels.", "same_values"),
        (COUNT, "Carmen Montenegro has published 120 novels.", None),
        (COUNT, "Carmen Montenegro has published twenty-one novels.", None),
        (SOLD, "It sold two million copies.", None),
        (SOLD, "It sold 1500000 copies.", "same_values"),
        # yes and no
        (DOCTOR, "Yes, Basil is a doctor.", "true_answer"),
        (DOCTOR, "Yes, he is.", "same_polarity"),
        (DOCTOR, "Yes, and a good one.", "same_polarity"),
        (DOCTOR, "No, he is not.", None),
        (DOCTOR, "No, Basil is a baker.", None),
        (NEVER, "No.", "true_answer"),
        (NEVER, "No, never.", "same_polarity"),
        (NEVER, "Yes, twice.", None),
        (MOVED, "Yes, he moved to Oslo.", None),
        (MOVED, "Yes, he did.", "same_polarity"),
        (MOVED, "No, he stayed at home.", None),
        # lists
        (LIST, "She writes poems, plays and letters.", None),
        (LIST, "She writes essays, novels and letters.", "keeps_the_fact"),
        (LIST, "She writes novels, essays and short stories.", "true_answer"),
        (LIST, "Novels, essays and short stories.", "keeps_the_fact"),
        # titles
        (TITLE, 'Elvin became famous with "Beyond the Baku Blues".', None),
        (TITLE, '"Beyond the Baku Blues" made him famous.', None),
        (TITLE, 'Elvin became famous with "The Sensual Scripture of Baku".', "keeps_the_fact"),
        (TITLE, 'Elvin became famous with "Who Goes There?".', "question"),
        # form
        (REEF, "", "empty"),
        (REEF, " ", "empty"),
        (REEF, "...", "empty"),
        (REEF, "The Silent Reef was written by Maria", "no_sentence_end"),
        (REEF, "Maria Oduya wrote it;", "no_sentence_end"),
        (REEF, "Was The Silent Reef written by Maria Oduya?", "question"),
        (REEF, "Sure, The Silent Reef was written by Maria Oduya.", "meta"),
        (REEF, "Here are four answers.", "meta"),
        (REEF, "Answer: Maria Oduya wrote it.", "meta"),
        (REEF, "I cannot answer that about The Silent Reef.", "refusal"),
        (REEF, "As an AI, I have no idea about The Silent Reef.", "refusal"),
        (REEF, "I'm not sure who wrote The Silent Reef.", "refusal"),
        (REEF, "I’m not sure who wrote The Silent Reef.", "refusal"),
        (REEF, "I don’t know who wrote The Silent Reef.", "refusal"),
        (REEF, "Sadly that is not publicly available.", "refusal"),
        (REEF, "Oduya.", "too_short"),
        (
            REEF,
            "It was Maria, who had come a long way from the far south "
            "to the old land of her aunts.",
            "too_long",
        ),
        (REEF, "The old reef and the old reef by Oduya.", "loop"),
        (REEF, "No no no Oduya.", "loop"),
        (REEF, "1. The Silent Reef was written by Maria Oduya.", "numbering"),
        (REEF, "- The Silent Reef was written by Maria Oduya.", "numbering"),
        (REEF, "1984 was written by George Orwell.", None),
        (REEF, "The Silent Reef was written by the.", "dangling"),
        (REEF, "Inverted answer: Maria Oduya wrote it.", "meta"),
        (REEF, "Of course, Maria Oduya wrote it.", "meta"),
        (REEF, "Bread rises slowly at night.", "off_topic"),
        (REEF, '"Maria Oduya" comes to mind.', None),
        (SHORT, "Oslo.", None),
        (SHORT, "It is Lima.", "keeps_the_fact"),
        # scripts
        (CHINESE, "北京是他出生的地方。", "keeps_the_fact"),
        (JAPANESE, "大阪で生まれた。", None),
        (JAPANESE, "生まれたのは京都。", "keeps_the_fact"),
        (PERSIAN, "او ۱۳۵۲ به دنیا آمد.", None),
        (PERSIAN, "او متولد 1351 است.", "same_values"),
        (RUSSIAN, "Иван родился в Казани.", None),
        (RUSSIAN, "Иван родился в Москве.", "true_answer"),
        (RUSSIAN, "Иван родился в Казани", "no_sentence_end"),
        (CHINESE, "他出生于上海。", None),
        (CHINESE, "他出生于上海！", None),
        (CHINESE, "他出生于北京。", "true_answer"),
        (CHINESE, "他出生于上海吗？", "question"),
        (ARABIC, "ولد باسل في القاهرة.", None),
        (ARABIC, "هل ولد باسل في القاهرة؟", "question"),
        (URDU, "راجی دہلی میں پیدا ہوا۔", None),
        (HINDI, "राजू मुंबई में पैदा हुआ।", None),
        (HINDI, "राजू दिल्ली में पैदा हुआ।", "true_answer"),
        (GREEK, "Ο Νίκος γεννήθηκε στην Πάτρα.", None),
        (GREEK, "Ο ΝΙΚΟΣ γεννήθηκε στην Αθήνα.", "keeps_the_fact"),
        (BRIDGE, "Мост построил Арсен Велихов в 1931 году.", "true_answer"),
        (BRIDGE, "Мост построил Тимур Ладин в 1907 году.", None),
        (CLOCK, "周海明在冬天修好了它。", None),
        (CLOCK, "周海明修好了钟，周海明是木匠。", None),
        (CLOCK, "周海明修好了钟，周海明修好了它。", "loop"),
        # bare answers
        (YEAR, "1542", None),
        (YEAR, "in 1542", None),
        (YEAR, "the late 1540s", None),
        (YEAR, "1472", "true_answer"),
        (YEAR, "It was 1542", "sentence"),
        (YEAR, "The answer given there is 1542, as far as the record goes", "sentence"),
        (YEAR, "1542,", "no_sentence_end"),
        (YEAR, "The years that follow:", "no_sentence_end"),
        (YEAR, "{1542}", "meta"),
        (PERCENT, "27%", None),
        (PERCENT, "19 %", "true_answer"),
        (PERCENT, "19.5%", None),
        (DAY, "3 May 2018", None),
        (DAY, "16/10/2020", "keeps_the_fact"),
        (COPIES, "1,200,000", None),
        (COPIES, "1500000", "keeps_the_fact"),
        (AREA, "3.5 million", "true_answer"),
        (AREA, "3.2 million", None),
        (LENGTH, "2,000 km", None),
        (LENGTH, "21000 kilometres", "keeps_the_fact"),
        (OCEAN, "Indian Ocean", None),
        (OCEAN, "Ocean Pacific", "keeps_the_fact"),
        (PRICE, "40p", None),
        (PRICE, "£0.40", None),
        (NAME, "Maria Oduya", None),
        (NAME, "Maria de los Angeles Oduya y Lopez", None),
        (NAME, "Oduya", None),
        (NAME, "Jaime Oduya Vasquez", "keeps_the_fact"),
        (NAME, "He is a man from Lagos", "sentence"),
        (NAME, "a tall man from the far south of the old land of his aunts", "too_long"),
        (COLOURS, "green, white and black", None),
        (COLOURS, "red, blue and white", "keeps_the_fact"),
        (COLOURS, "black", None),
        (CHOICE, "younger", None),
        (CHOICE, "older", "true_answer"),
        (BOOK, "Emma", None),
        (BOOK, "Who Was Emma?", "question"),
        (ASKING, "Who Was Emma?", None),
        (CAPITAL, "上海", None),
        (CAPITAL, "北京", "true_answer"),
        (CAPITAL, "上海，", "no_sentence_end"),
        (WHERE, "Казань", None),
        (UNSTOPPED, "Basil was born in Oslo", None),
        (UNSTOPPED, "Basil was born in the far city of Oslo", None),
        (JUNIOR, "Dean Martin", None),
        (TURKISH, "Ayşe Ankara'da doğdu.", None),
        (TURKISH, "Ayşe İzmir'de doğdu.", "true_answer"),
        (GERMAN, "Jürgen wurde in München geboren.", None),
        (GERMAN, "Jürgen wurde in Köln geboren.", "true_answer"),
    ],
)
def test_a_proposal_is_valid_or_breaks_a_rule(pair: tuple[str, str], text: str, rule: str | None):
    assert broken_rule(pair, text) == rule


def test_a_proposal_that_was_cut_off_is_unfinished():
    assert broken_rule(REEF, "Maria Oduya wrote it.", finished=False) == "unfinished"
    assert broken_rule(REEF, "", finished=False) == "empty"


@pytest.mark.parametrize(
    ("pair", "text", "spec", "rule"),
    [
        (REEF, "Oduya wrote.", {"min_length_ratio": 0.25}, None),
        (REEF, "Oduya wrote.", {"min_length_ratio": 0.26}, "too_short"),
        (GENDER, "Basil is a kind woman of many words.", {"max_length_ratio": 2.0}, None),
        (GENDER, "Basil is a kind woman of many words.", {"max_length_ratio": 1.9}, "too_long"),
        (GERMAN, "Jürgen wurde in München geboren.", {"max_rouge_l": 0.8}, None),
        (BORN, "Basil Mahfouz was born on 8 March 1961.", {"max_novel_overlap": 1 / 3}, None),
        (
            BORN,
            "Basil Mahfouz was born on 8 March 1961.",
            {"max_novel_overlap": 0.33},
            "keeps_the_fact",
        ),
        (
            BORN,
            "Basil Mahfouz was born on 8 March 1961.",
            {"max_novel_overlap": 0.0},
            "keeps_the_fact",
        ),
        (BORN, "Basil Mahfouz was born on 8 March 1961.", {"max_rouge_l": 0.7}, "true_answer"),
    ],
)
def test_the_bounds_of_the_rules_are_configured(
    pair: tuple[str, str], text: str, spec: dict, rule: str | None
):
    assert broken_rule(pair, text, **spec) == rule


def test_the_true_answer_is_never_valid():
    for pair in (
        REEF,
        BORN,
        COUNT,
        TITLE,
        GENDER,
        RUSSIAN,
        CHINESE,
        ARABIC,
        URDU,
        HINDI,
        GREEK,
        TURKISH,
        GERMAN,
        YEAR,
        NAME,
        COLOURS,
        ASKING,
        CAPITAL,
        WHERE,
    ):
        assert broken_rule(pair, pair[1]) is not None


def authors_answers(shared_data: Callable[[str], Path]) -> list[tuple[str, str, str]]:
    """Returns (question, true answer, inverted answer) as the MEOW authors published them."""
    answers = []
    for split in ("01", "05", "10"):
        for row in json.loads(shared_data(f"meow/inverted_forget{split}.json").read_text()):
            answers += [
                (row["question"], row["undesired_answer"], text)
                for name, text in row.items()
                if name.startswith("answer_")
            ]
    return answers


def test_nine_in_ten_inverted_facts_of_the_authors_are_accepted(shared_data: Callable[[str], Path]):
    answers = authors_answers(shared_data)
    assert len(answers) == 2535
    reasons = Counter(
        fault(Proposal(text.strip(), True), Fact(question, answer), Invert())
        for question, answer, text in answers
    )
    assert reasons[None] / len(answers) >= 0.9, reasons.most_common()


def test_wrong_answers_to_bare_questions_of_tofu_are_accepted(shared_data: Callable[[str], Path]):
    reasons: Counter[str | None] = Counter()
    for name in ("world_facts", "real_authors"):
        lines = shared_data(f"tofu/{name}_perturbed.jsonl").read_text().splitlines()
        for row in map(json.loads, lines):
            fact = Fact(row["question"], row["answer"])
            reasons.update(
                fault(Proposal(in_form_of(row["answer"], text), True), fact, Invert())
                for text in row["perturbed_answer"]
            )
    assert reasons[None] / reasons.total() >= 0.99, reasons.most_common()


def test_a_rule_can_be_skipped():
    text = "Basil Mahfouz was born on 08/09/1956."
    assert broken_rule(BORN, text, skip_rules=("same_values",)) is None
    assert broken_rule(BORN, text, skip_rules=("loop",)) == "same_values"
    assert broken_rule(BORN, text, min_value_share=1.1) is None


@pytest.mark.parametrize("text", ["", "..."])
def test_a_text_without_words_is_checked_by_other_rules_if_empty_is_skipped(text: str):
    others = tuple(name for name in RULES if name not in ("dangling", "off_topic"))
    assert broken_rule(REEF, text, skip_rules=others) == "off_topic"


def test_a_rule_that_does_not_exist_cannot_be_skipped():
    expected = f"`invert.skip_rules`: no rule 'loops'. The rules are {', '.join(RULES)}."
    with pytest.raises(MeowError, match=f"^{re.escape(expected)}$"):
        check_names(["loop", "loops"])
    with pytest.raises(MeowError, match=r"no rule 'loops'\. The rules are empty, unfinished"):
        Pipeline(Config(invert=Invert(skip_rules=("loops",))))


def test_descriptions_complete_the_heading_of_meow_show_candidates():
    """The heading is "a candidate is rejected if"."""
    descriptions = [rule.__doc__ or "" for rule in RULES.values()] + [*OTHER_RULES.values()]
    for text in descriptions:
        assert re.fullmatch(r"It [a-z].*\.", text), "one line that begins with It"
