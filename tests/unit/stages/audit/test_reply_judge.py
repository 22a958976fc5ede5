"""The judge of replies as an input, before a run, and in an actor."""

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pytest

from meow_ray.config import Config, Judge
from meow_ray.core.schema import ROW
from meow_ray.core.stage import names_of
from meow_ray.engines import Completion
from meow_ray.errors import MeowError
from meow_ray.pipeline.pipeline import load_config
from meow_ray.stages.audit import reply_judge
from meow_ray.stages.audit.judging import Item
from meow_ray.stages.audit.reply_judge import JUDGE_MODEL, JudgeSteps, check_judge
from meow_ray.stages.audit.stage import AUDIT
from meow_ray.stages.invert.generators import Ask
from tests.support.endpoints import endpoint
from tests.support.servers import answering, silent_address

URL = "http://127.0.0.1:9/v1"
ENDPOINT = ("engine=openai", "model=judge", f"base_url={URL}")


def config(*settings: str) -> Config:
    return load_config(None, [f"audit.judge.{setting}" for setting in settings])


def digest(*settings: str) -> str:
    return JUDGE_MODEL.resolve(config(*settings), False).digest


def faults(*settings: str) -> list[str]:
    chosen = config(*settings)
    return list(check_judge(chosen, {"judge": JUDGE_MODEL.resolve(chosen, False)}))


def test_an_audit_without_a_judge_has_the_inputs_and_settings_of_before():
    plain = Config()
    ingredients = AUDIT.ingredients(plain, {})
    assert "judge" not in ingredients["spec"]["audit"]
    assert "judge" not in ingredients["schema"]
    assert "judge" not in names_of(AUDIT.declared_inputs(plain))
    assert "judge" in names_of(AUDIT.declared_inputs(config("model=x")))
    assert AUDIT.ingredients(config("model=x"), {}) == ingredients


def test_the_digest_depends_on_the_model_the_prompt_and_the_settings_but_not_on_the_key():
    first = digest(*ENDPOINT)
    assert digest(*ENDPOINT, "api_key_env=OTHER") == first
    for change in (
        "model=other",
        f"base_url={URL}/2",
        "max_new_tokens=7",
        "prompt=Is it {{ reply }}?",
    ):
        assert digest(*ENDPOINT, change) != first


def test_a_local_judge_is_known_by_its_content(tiny_model: Path):
    resolved = JUDGE_MODEL.resolve(config(f"model={tiny_model}", "engine=transformers"), False)
    assert resolved.value.uri.endswith(tiny_model.name)
    assert faults(f"model={tiny_model}", "engine=transformers") == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("engine=vllm",), "`audit.judge.model` is not set"),
        (("engine=openai", "model=judge"), "needs a URL and a model name"),
        (("model=judge", f"base_url={URL}"), "Set `audit.judge.engine` to openai"),
        (("model=/no/such/model",), "audit.judge.model"),
    ],
)
def test_a_judge_that_cannot_be_found_is_refused(settings: tuple[str, ...], message: str):
    with pytest.raises(MeowError, match=message):
        digest(*settings)


def test_an_endpoint_is_tried_before_the_run(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    settings = ("engine=openai", "model=judge", "api_key_env=JUDGE_KEY")
    url = silent_address()
    (fault,) = faults(*settings, f"base_url={url}/v1")
    assert fault.startswith(f"`audit.judge.base_url`: the endpoint {url}/v1 cannot be reached")
    with answering(401, {"error": {}}) as (url, _):
        (fault,) = faults(*settings, f"base_url={url}/v1")
    assert "refuses the key from JUDGE_KEY, which is not set" in fault
    with answering(404, {"error": {}}) as (url, _):
        (fault,) = faults(*settings, f"base_url={url}/v1")
    assert "or `audit.judge.model`" in fault


def test_a_prompt_that_cannot_be_filled_is_found_before_the_run(tiny_model: Path):
    (fault,) = faults(f"model={tiny_model}", "engine=transformers", "prompt=Is it {{ candidate }}?")
    assert fault.startswith("`audit.judge.prompt`: the Jinja template cannot be filled")


def test_the_user_is_told_that_facts_leave_for_an_endpoint():
    assert reply_judge.hint(Config()) is None
    assert reply_judge.hint(config("model=x")) is None
    told = reply_judge.hint(config(*ENDPOINT))
    assert told is not None
    assert URL in told


class Rule:
    """A judge that decides by the reply, and is silent about some."""

    def __init__(self) -> None:
        self.asked: list[Ask] = []

    def ask(self, asks: Sequence[Ask]) -> list[list[Completion] | None]:
        self.asked += asks
        return [self._answer(ask.text.split("]")[-2]) for ask in asks]

    def _answer(self, reply: str) -> list[Completion] | None:
        if "long" in reply:
            return None
        if "strange" in reply:
            return [Completion("I would rather not say.", True)]
        gives_away = "1990" in reply and "not" not in reply
        return [Completion(f'{{"gives_away": {str(gives_away).lower()}}}', True)]


def batch(*replies: str) -> pa.Table:
    items = [Item("When?", "In 1990.", "When?", reply) for reply in replies]
    rows = [{ROW: item.row_id, **item._asdict()} for item in items]
    return pa.Table.from_pylist(rows, schema=reply_judge._ITEMS_SCHEMA)


def test_a_judge_is_asked_greedily_and_its_silence_is_missing():
    judge = Rule()
    replies = ("In 1990.", "It was not 1990.", "long", "strange", "In 1980.")
    done = JudgeSteps(Judge().prompt, 9)(judge, batch(*replies))  # type: ignore[arg-type]
    assert done["gives_away"].to_pylist() == [True, False, None, None, False]
    for ask in judge.asked:
        assert (ask.sampling.temperature, ask.sampling.max_new_tokens) == (0.0, 9)
        assert ask.sampling.json_schema is not None


def test_an_endpoint_that_refuses_all_replies_of_a_batch_is_no_error():
    with endpoint(lambda _: (400, {"error": {"message": "filtered"}})) as server:
        spec = Judge(engine="openai", model="m", base_url=f"http://127.0.0.1:{server.port}/v1")
        loaded = reply_judge._endpoint(spec, Config().resources.invert).load()
        done = JudgeSteps(spec.prompt, 9)(loaded, batch("In 1990."))
    assert done["gives_away"].to_pylist() == [None]
