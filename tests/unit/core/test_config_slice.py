"""What a stage may read of the configuration."""

import pickle
from typing import Any

import pytest

from meow_ray.config import Config
from meow_ray.core.config_slice import ConfigSlice
from meow_ray.core.stage import Context, execute, state_of
from tests.support.stages import DATA, INPUTS, make_stage, run_stage, write_facts


@pytest.fixture
def part(config: Config) -> ConfigSlice:
    return ConfigSlice(config, "ingest", ("ingest", "target.max_model_len", "target.engine"))


def test_declared_sections_and_fields_can_be_read(part: ConfigSlice, config: Config):
    assert part.ingest == config.ingest
    assert part.target.max_model_len is None
    assert part.target.engine == "vllm"


def test_resources_and_tracking_can_always_be_read(part: ConfigSlice, config: Config):
    assert part.resources == config.resources
    assert part.tracking == config.tracking


@pytest.mark.parametrize("section", ["select", "storage", "no_such_section"])
def test_a_section_that_is_not_declared_is_an_error_with_stage_and_section(
    part: ConfigSlice, section: str
):
    message = rf"^stage ingest does not declare the section {section}\. Add it to its sections\.$"
    with pytest.raises(AttributeError, match=message):
        getattr(part, section)


@pytest.mark.parametrize("field", ["model", "no_such_field"])
def test_a_field_that_is_not_declared_is_an_error_with_stage_section_and_field(
    part: ConfigSlice, field: str
):
    message = rf"^stage ingest does not declare the field target\.{field}\. Add it to its sections"
    with pytest.raises(AttributeError, match=message):
        getattr(part.target, field)


def test_a_whole_section_wins_over_its_fields(config: Config):
    part = ConfigSlice(config, "evaluate", ("target", "target.template"))
    assert part.target == config.target


def test_a_slice_can_be_sent_to_another_process(part: ConfigSlice, config: Config):
    copy = pickle.loads(pickle.dumps(part))
    assert copy.ingest == config.ingest
    assert copy.target.engine == "vllm"
    with pytest.raises(AttributeError, match="stage ingest does not declare the section select"):
        copy.select  # noqa: B018
    with pytest.raises(AttributeError, match=r"does not declare the field target\.model"):
        copy.target.model  # noqa: B018


def test_a_stage_that_reads_an_undeclared_section_fails_and_publishes_nothing(config: Config):
    def read_select(context: Context) -> dict[str, Any]:
        return {"top_k": context.config.select.top_k}

    with pytest.raises(AttributeError, match="stage ingest does not declare the section select"):
        run_stage(make_stage(read_select), config)
    assert state_of(make_stage(), config, INPUTS).state == "missing"


def test_a_stage_gets_its_settings_and_its_inputs(config: Config):
    contexts: list[Context] = []

    def remember(context: Context) -> dict[str, Any]:
        contexts.append(context)
        return write_facts(context)

    execute(state_of(make_stage(remember), config, INPUTS), config, INPUTS)
    assert dict(contexts[0].inputs) == {"data": DATA}
    assert isinstance(contexts[0].config, ConfigSlice)
    assert contexts[0].config.ingest == config.ingest
