"""A target that may think before it answers is pointed out, unless the configuration says which."""

from pathlib import Path
from typing import Any

import pytest

from meow_ray.config import Target
from meow_ray.core.manifest import Artifact
from meow_ray.stages.inputs import thinking_hint
from tests.support.models import llama_config, write_model

THINKS = "{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}"


@pytest.fixture
def target(tiny_tokenizer: Any, tmp_path: Path) -> Artifact:
    ref = write_model(tmp_path, tiny_tokenizer, llama_config())
    path = tmp_path / "chat_template.jinja"
    path.write_text(path.read_text() + THINKS)
    return Artifact("target", ref.uri, ref.digest, value=ref)


def test_a_template_with_thinking_is_pointed_out_unless_the_variable_is_set(target: Artifact):
    hint = thinking_hint(target, Target())
    assert hint is not None
    assert "Set target.template_variables.enable_thinking=false" in hint
    for value in (True, False):
        settings = Target(template_variables={"enable_thinking": value})
        assert thinking_hint(target, settings) is None
    assert thinking_hint(target, Target(template="raw")) is None


def test_a_template_without_thinking_is_not_pointed_out(tiny_tokenizer: Any, tmp_path: Path):
    ref = write_model(tmp_path, tiny_tokenizer, llama_config())
    assert thinking_hint(Artifact("target", ref.uri, ref.digest, value=ref), Target()) is None
