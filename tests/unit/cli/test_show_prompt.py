"""`meow show prompt`: a rendered pair with its tokens."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from meow_ray.cli.main import app
from meow_ray.errors import MeowError
from meow_ray.stages.ingest.facts import fact_id

FACTS = [("What ends it?", "The mark </s> does."), ("Who?", "Ann.")]


@pytest.fixture
def options(tiny_model: Path, tmp_path: Path) -> list[str]:
    file = tmp_path / "forget.jsonl"
    lines = [json.dumps({"question": question, "answer": answer}) for question, answer in FACTS]
    file.write_text("\n".join(lines))
    return [
        f"target.model={tiny_model}",
        f"ingest.forget={file}",
        f"storage.root={tmp_path / 'runs'}",
    ]


def shown(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["show", "prompt", *arguments], catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout


def test_it_shows_the_first_fact_with_the_tokens_that_are_scored(options: list[str]):
    pair = json.loads(shown("--json", "--text", *options))
    assert pair["prompt"] == "<s><|user|>What ends it?<|end|><|assistant|>"
    assert pair["end"] == "<|end|>"
    assert pair["stops"] == ["</s>", "<|end|>"]
    scored = [token for token in pair["tokens"] if token["scored"]]
    assert "".join(token["text"] for token in scored) == "The mark </s> does.<|end|>"
    assert len(scored) == len("The mark </s> does.") + 1
    rest = [token["text"] for token in pair["tokens"] if not token["scored"]]
    assert "".join(rest) == pair["prompt"]


def test_it_shows_a_fact_by_its_id(options: list[str]):
    pair = json.loads(shown("--json", "--fact", fact_id(*FACTS[1]), *options))
    assert pair["answer"] == "Ann."
    with pytest.raises(MeowError, match="there is no fact 00ff"):
        shown("--fact", "00ff", *options)


def test_no_text_of_a_fact_is_shown_unless_asked_for(options: list[str]):
    output = shown(*options, "target.template_variables={}")
    assert "Who wrote this?" in output
    assert "The mark" not in output
    assert "of which 19 are learnt and scored" in output
    assert "The mark </s> does." in shown("--text", *options)


def test_a_variable_that_the_template_does_not_read_is_refused(options: list[str]):
    message = (
        r"^`target\.template_variables`: the template does not read enable_thinkin\. "
        r"It reads none\."
    )
    with pytest.raises(MeowError, match=message):
        shown(*options, "target.template_variables.enable_thinkin=false")
