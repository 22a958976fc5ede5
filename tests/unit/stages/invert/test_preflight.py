"""Endpoints are tried with one request before a run."""

import json

import pytest

from meow_ray.config import Config
from meow_ray.pipeline.pipeline import load_config
from meow_ray.stages.invert import preflight
from tests.support.servers import answering, silent_address

REPLY = {
    "id": "1",
    "object": "chat.completion",
    "created": 1,
    "model": "writer",
    "choices": [
        {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "OK"}}
    ],
}


def config(url: str, *overrides: str) -> Config:
    return load_config(
        None,
        ["invert.engine=openai", "invert.model=writer", f"invert.base_url={url}/v1", *overrides],
    )


def faults(settings: Config) -> list[str]:
    return list(preflight._check_endpoints(settings, {}))


def test_one_small_request_without_optional_fields_is_sent(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OPENAI_API_KEY", "the key")
    with answering(200, REPLY) as (url, requests):
        assert faults(config(url)) == []
    (request,) = requests
    assert request["path"] == "/v1/chat/completions"
    assert request["headers"]["Authorization"] == "Bearer the key"
    assert set(json.loads(request["body"])) == {"model", "messages"}


@pytest.mark.parametrize("status", [400, 422, 429, 500, 503])
def test_what_the_run_itself_copes_with_is_no_fault(status: int):
    with answering(status, {"error": {"message": "unknown field"}}) as (url, _):
        assert faults(config(url)) == []


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_key_is_named_by_its_variable(status: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with answering(status, {"error": {}}) as (url, _):
        assert faults(config(url)) == [
            f"`invert.base_url`: the endpoint {url}/v1 refuses the key from OPENAI_API_KEY, which "
            f"is not set (HTTP {status}). Set the variable to a valid key."
        ]


def test_an_unknown_model_is_named():
    with answering(404, {"error": {}}) as (url, _):
        assert faults(config(url)) == [
            f"`invert.base_url`: the endpoint {url}/v1 does not know this path or the model writer "
            "(HTTP 404). Correct `invert.base_url`, which ends in /v1, or `invert.model`."
        ]


def test_an_address_without_a_server_is_named_for_the_generator_and_the_judge():
    url = silent_address()
    judge = ("invert.judge=endpoint", "invert.judge_model=judge", f"invert.judge_base_url={url}/v1")
    found = faults(config(url, *judge))
    assert [fault.split(" cannot be reached")[0] for fault in found] == [
        f"`invert.base_url`: the endpoint {url}/v1",
        f"`invert.judge_base_url`: the endpoint {url}/v1",
    ]
