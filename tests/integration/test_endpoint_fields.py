"""Tests of endpoints that refuse fields of a request, over HTTP."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from meow_ray.engines import Sampling
from meow_ray.errors import MeowError
from meow_ray.stages.invert.endpoint import Endpoint, EndpointSpec
from meow_ray.stages.invert.generators import Ask
from meow_ray.stages.invert.replies import reply_schema
from tests.support.endpoints import Refusal, Server, endpoint
from tests.support.runs import Program

SECRET = "Zorblax"
ALL = ("max_completion_tokens", "temperature", "top_p", "n", "seed", "response_format")
SAMPLING = Sampling(20, temperature=0.7, top_p=0.9, n=3, seed=5, json_schema=reply_schema(2))


def openai_param(name: str) -> Refusal:
    message = f"Unsupported parameter: '{name}' is not supported with this model."
    return 400, {"error": {"message": message, "type": "invalid_request_error", "param": name}}


def openai_value(name: str) -> Refusal:
    message = f"Unsupported value: '{name}' does not support 0.7. Only 1 is supported."
    error = {"message": message, "param": name, "code": "unsupported_value"}
    return 400, {"error": error}


def fastapi(name: str) -> Refusal:
    extra = {"type": "extra_forbidden", "loc": ["body", name], "msg": "Extra inputs", "input": 1}
    return 422, {"detail": [extra]}


def mistral(name: str) -> Refusal:
    extra = {"type": "extra_forbidden", "loc": ["body", name]}
    return 422, {"object": "error", "message": {"detail": [extra]}}


def groq(name: str) -> Refusal:
    return 400, {"error": {"message": f"property '{name}' is unsupported"}}


def old_openai(name: str) -> Refusal:
    message = f"Unrecognized request argument supplied: '{name}'"
    return 400, {"error": {"message": message, "param": None, "code": None}}


def plain_text(name: str) -> Refusal:
    return 400, f"unknown field `{name}`"


def azure(name: str) -> Refusal:
    return 400, {"error": {"message": f"Unrecognized request argument supplied: {name}"}}


FORMS = [openai_param, openai_value, fastapi, mistral, groq, old_openai, azure, plain_text]


def refusing(names: tuple[str, ...], form: Callable[[str], Refusal]) -> Callable[..., Any]:
    """Returns what refuses these fields, one at a time."""

    def refuse(request: dict[str, Any]) -> Refusal | None:
        name = next((name for name in names if name in request), None)
        return None if name is None else form(name)

    return refuse


def loaded(server: Server, **options: Any) -> Endpoint:
    settings: dict[str, Any] = {"model": "m", "api_key": "k", "max_retries": 0, "concurrency": 1}
    return EndpointSpec(f"http://127.0.0.1:{server.port}/v1", **settings | options).load()


def asks(count: int, sampling: Sampling = SAMPLING) -> list[Ask]:
    return [Ask(f"Who is {SECRET} number {i}?", sampling) for i in range(count)]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ALL)
def test_a_refused_field_is_left_out_once_and_for_all(name: str, form: Callable[[str], Refusal]):
    def reply(request: dict[str, Any]) -> list[str]:
        return [f"seed {request.get('seed')} {i}" for i in range(request.get("n", 1))]

    with endpoint(refusing((name,), form), reply) as server:
        generator = loaded(server)
        first, second = generator.ask(asks(1)), generator.ask(asks(1))
    for replies in (*first, *second):
        assert replies is not None
        assert len(replies) == 3
    assert generator.left_out == (name,)
    assert len(server.requests) - len(server.answered) == 1, "only one request is refused"
    request = server.answered[0]
    others = {*ALL} - {name}
    assert others <= set(request)
    if name == "max_completion_tokens":
        assert request["max_tokens"] == 20
    if name == "n":
        assert [request["seed"] for request in server.answered] == [5, 6, 7] * 2
        assert len({completion.text for completion in first[0] or ()}) == 3


@pytest.mark.parametrize("form", FORMS)
def test_an_endpoint_may_refuse_all_fields(form: Callable[[str], Refusal]):
    with endpoint(refusing((*ALL, "max_tokens"), form)) as server:
        generator = loaded(server, concurrency=4)
        replies = generator.ask(asks(6))
    assert all(completions is not None and len(completions) == 3 for completions in replies)
    assert set(generator.left_out) == {*ALL, "max_tokens"}
    assert all(set(request) == {"model", "messages"} for request in server.answered)
    refused = Counter(request["messages"][0]["content"] for request in server.requests)
    assert max(refused.values()) <= 3 + len(ALL) + 1


def test_each_of_several_fields_in_an_error_is_left_out():
    def refuse(request: dict[str, Any]) -> Refusal | None:
        extra = [
            {"type": "extra_forbidden", "loc": ["body", name]}
            for name in ("seed", "top_p")
            if name in request
        ]
        return (422, {"detail": extra}) if extra else None

    with endpoint(refuse) as server:
        generator = loaded(server)
        assert generator.ask(asks(1, Sampling(5, seed=1)))[0] is not None
    assert generator.left_out == ("seed", "top_p")


def test_an_endpoint_that_ignores_n_is_asked_several_times():
    with endpoint(lambda _: None) as server:
        replies = loaded(server).ask(asks(1))[0]
    assert replies is not None
    assert len(replies) == 3
    assert [request["seed"] for request in server.requests] == [5, 6, 7]


@pytest.mark.parametrize(
    "message",
    [
        "'max_completion_tokens' is too large: 20. This model's maximum context length is 16.",
        "The prompt is too long. Reduce max_completion_tokens.",
    ],
)
def test_a_prompt_that_is_too_long_does_not_take_the_limit_away(message: str):
    def refuse(request: dict[str, Any]) -> Refusal | None:
        error = {"message": message, "param": "max_completion_tokens"}
        is_long = "number 0" in request["messages"][0]["content"]
        return (400, {"error": error}) if is_long else None

    with endpoint(refuse, lambda request: ["x"] * request["n"]) as server:
        generator = loaded(server)
        replies = generator.ask(asks(2))
    assert replies[0] is None
    assert replies[1] is not None
    assert generator.left_out == ()
    assert len(server.requests) == 2


@pytest.mark.parametrize(
    ("body", "details"),
    [
        ({"detail": [{"loc": ["body", "messages", 0, "content"]}]}, "body.messages.0.content"),
        ({"error": {"message": f"{SECRET} is forbidden", "code": "moderated"}}, "moderated"),
        ({"error": {"message": "no", "param": "seed"}}, "seed"),
    ],
)
def test_the_error_names_the_place_in_the_request_but_no_text(body: Any, details: str):
    with endpoint(lambda _: (422, body)) as server, pytest.raises(MeowError) as caught:
        loaded(server).ask(asks(2, Sampling(5)))
    assert f"answers HTTP 422 ({details})" in str(caught.value)
    assert SECRET not in str(caught.value)


def test_the_run_says_what_was_left_out_for_generator_and_judge(tiny_model: Path, tmp_path: Path):
    """Both endpoints refuse fields; the manifest counts the facts, and a warning is printed."""
    facts = [
        {"question": f"Where was {SECRET} {i} born?", "answer": f"{SECRET} {i} was born in Lima."}
        for i in range(3)
    ]
    (tmp_path / "facts.jsonl").write_text("".join(json.dumps(fact) + "\n" for fact in facts))

    def write(request: dict[str, Any]) -> list[str]:
        if SECRET not in request["messages"][0]["content"]:
            return ["OK"]  # to the request before the run
        number = request["messages"][0]["content"].split(SECRET)[1].split()[0]
        cities = ("Oslo", "Rome", "Kyiv", "Accra")
        answers = [f"{SECRET} {number} was born in {city}." for city in cities]
        return [f'<think>["a"]?</think>{json.dumps({"answers": answers})}']

    def judge(request: dict[str, Any]) -> list[str]:
        contradicts = "Rome" not in request["messages"][0]["content"]
        return [f"<think>Is it true?</think>{json.dumps({'contradicts': contradicts})}"]

    with (
        endpoint(refusing(("seed", "max_completion_tokens"), mistral), write) as generator,
        endpoint(refusing(("temperature",), openai_value), judge) as judging,
    ):
        (tmp_path / "config.yaml").write_text(
            f"target: {{model: {tiny_model}}}\n"
            f"ingest: {{forget: {tmp_path}/facts.jsonl}}\n"
            "invert:\n"
            "  engine: openai\n"
            f"  base_url: http://127.0.0.1:{generator.port}/v1\n"
            "  model: m\n"
            "  judge: endpoint\n"
            f"  judge_base_url: http://127.0.0.1:{judging.port}/v1\n"
            "  judge_model: j\n"
            "  num_candidates: 3\n"
        )
        program = Program(tmp_path / "config.yaml", tmp_path / "root")
        done = program.run("meow.py", "--until=invert")
    warnings = [line for line in done.stdout.splitlines() if "warning" in line]
    assert warnings == [
        "  invert: warning: the endpoint refuses some settings, which were left out: "
        "judge.temperature for 3 of 3 facts, "
        "max_completion_tokens (sent as max_tokens) for 3 of 3 facts, seed for 3 of 3 facts"
    ]
    manifest = program.artifact("candidates").manifest
    assert manifest is not None
    assert manifest.summary["left_out"] == {
        "judge.temperature": 3,
        "max_completion_tokens": 3,
        "seed": 3,
    }
    answers = program.table("candidates")["inverted_answer"].to_pylist()
    assert len(answers) == 9
    assert {answer.split()[-1] for answer in answers} == {"Oslo.", "Kyiv.", "Accra."}
