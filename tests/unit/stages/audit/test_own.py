"""Attacks of the user's own files."""

from pathlib import Path

import pytest

from meow_ray.config import Audit, Config
from meow_ray.errors import MeowError
from meow_ray.stages.audit import own
from meow_ray.stages.audit.attack import Subject

FACT = Subject("f", "facts", "Where?", "Secretville")
HEAD = "from meow_ray.stages.audit.attack import Question\n"


def sources(*attacks: str) -> dict[str, str]:
    config = Config(audit=Audit(attacks=attacks))
    found: dict[str, str] = own.OWN_ATTACKS.resolve(config, False).value
    return found


def test_a_function_asks_and_its_text_is_the_digest(tmp_path: Path):
    file = tmp_path / "mine.py"
    file.write_text(
        HEAD + "def ask(subject, spec):\n    yield Question('', 'Why?', subject.answer)"
    )
    (attack,) = own.load(sources("direct", f"{file}:ask"))
    assert (attack.name, attack.tier) == ("ask", "black box")
    assert [each.question for each in attack.ask(FACT, Audit())] == ["Why?"]
    config = Config(audit=Audit(attacks=(f"{file}:ask",)))
    before = own.OWN_ATTACKS.resolve(config, False).digest
    file.write_text(file.read_text() + "\n# changed")
    assert own.OWN_ATTACKS.resolve(config, False).digest != before


@pytest.mark.parametrize(
    ("text", "function", "message"),
    [
        ("1 / 0", "ask", "cannot be loaded"),
        ("ask = 3", "ask", "neither a function nor an Attack"),
        ("def direct(subject, spec): ...", "direct", "two attacks called direct"),
        ("def judge(subject, spec): ...", "judge", "two attacks called judge"),
        ("def other(subject, spec): ...", "ask", "cannot be loaded"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused(
    tmp_path: Path, text: str, function: str, message: str
):
    file = tmp_path / "mine.py"
    file.write_text(text)
    with pytest.raises(MeowError, match=message):
        sources(f"{file}:{function}")


def test_a_missing_file_and_a_wrong_form_are_named(tmp_path: Path):
    with pytest.raises(MeowError, match="there is no file"):
        sources(f"{tmp_path}/none.py:ask")
    with pytest.raises(MeowError, match="not of the form"):
        sources("mine.txt:ask")


@pytest.mark.parametrize("body", ["raise ValueError(subject.answer)", "return [subject.answer]"])
def test_errors_of_the_function_show_no_text_of_facts(tmp_path: Path, body: str):
    file = tmp_path / "mine.py"
    file.write_text(f"def ask(subject, spec):\n    {body}")
    (attack,) = own.load(sources(f"{file}:ask"))
    with pytest.raises(MeowError, match=r"Correct the function|must return") as error:
        list(attack.ask(FACT, Audit()))
    assert "Secretville" not in str(error.value)
