"""Tests of endpoints: a real vLLM server, asked directly and through a proxy that fails."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from meow_ray.config import EngineResources
from meow_ray.core import storage
from meow_ray.core.manifest import REJECTS_FILE, SHORTFALL_FILE
from meow_ray.distributed.map_rows import cpu_env
from meow_ray.engines import Sampling
from meow_ray.errors import MeowError
from meow_ray.stages.invert.endpoint import EndpointSpec
from meow_ray.stages.invert.generators import Ask
from meow_ray.stages.invert.replies import reply_schema
from meow_ray.stages.invert.rules import RULES
from tests.support.runs import Program

KEY = "key-of-the-test-7fd1"
MODEL = "tiny"
SECRET = "Zorblax"


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.fixture(scope="module")
def server(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """vLLM's OpenAI server with a tiny model; yields its port."""
    port, log = free_port(), tmp_path_factory.mktemp("server") / "log"
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", f"--model={tiny_model}"]
    options = [
        f"--served-model-name={MODEL}",
        "--host=127.0.0.1",
        f"--port={port}",
        f"--api-key={KEY}",
        "--dtype=float32",
        "--max-model-len=512",
        "--enforce-eager",
        "--no-enable-chunked-prefill",
        "--block-size=32",
    ]
    environment = (
        os.environ | cpu_env(EngineResources(), 2) | {"VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
    )
    with log.open("w") as out:
        process = subprocess.Popen([*command, *options], env=environment, stdout=out, stderr=out)
    try:
        deadline = time.monotonic() + 240
        while not _is_up(port):
            assert process.poll() is None, log.read_text()[-3000:]
            assert time.monotonic() < deadline, log.read_text()[-3000:]
            time.sleep(0.5)
        yield port
    finally:
        process.terminate()
        process.wait(60)


def _is_up(port: int) -> bool:
    try:
        connection = HTTPConnection("127.0.0.1", port, timeout=2)
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except OSError:
        return False


class Proxy(ThreadingHTTPServer):
    """A proxy that fails `failures` times for each request, then forwards it to a server.

    The failures take turns in their kind.
    """

    KINDS = ("rate", "error", "silence", "cut", "half", "garbage", "html")

    def __init__(self, upstream: int, failures: int) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.upstream, self.failures = upstream, failures
        self.seen: Counter[bytes] = Counter()
        self.passed: Counter[bytes] = Counter()
        self.failed: Counter[str] = Counter()
        self.lock = threading.Lock()

    def failure(self, body: bytes) -> str | None:
        """Returns the kind of failure for a request; None forwards it."""
        with self.lock:
            self.seen[body] += 1
            if self.seen[body] > self.failures:
                self.passed[body] += 1
                return None
            kind = self.KINDS[self.failed.total() % len(self.KINDS)]
            self.failed[kind] += 1
            return kind


class Handler(BaseHTTPRequestHandler):
    """Answers a request of the proxy."""

    server: Proxy
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        failure = self.server.failure(body)
        if failure is None:
            self._forward(body)
        elif failure == "rate":
            self._send(429, b'{"error": {"message": "slow down"}}', retry_after="0.1")
        elif failure == "error":
            self._send(500, b"it broke")
        elif failure == "silence":
            time.sleep(3)
            self.close_connection = True
        elif failure == "cut":
            self.close_connection = True
        elif failure == "half":
            self._send(200, b'{"id": "x", "choices": [', length=1000)
            self.close_connection = True
        elif failure == "garbage":
            self._send(200, b'{"id": "x", "choices": [{]')
        else:
            self._send(200, b"<html>all is well</html>", "text/html")

    def _forward(self, body: bytes) -> None:
        headers = {name: value for name, value in self.headers.items() if name != "Host"}
        upstream = HTTPConnection("127.0.0.1", self.server.upstream, timeout=120)
        upstream.request("POST", self.path, body, headers)
        reply = upstream.getresponse()
        self._send(reply.status, reply.read(), reply.headers["Content-Type"])

    def _send(
        self,
        status: int,
        body: bytes,
        kind: str = "application/json",
        retry_after: str = "",
        length: int | None = None,
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        if retry_after:
            self.send_header("Retry-After", retry_after)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def proxy(request: pytest.FixtureRequest, server: int) -> Iterator[Proxy]:
    """A proxy for the server; the test's parameter is the number of failures."""
    started = Proxy(server, getattr(request, "param", 1))
    thread = threading.Thread(target=started.serve_forever, daemon=True)
    thread.start()
    yield started
    started.shutdown()
    started.server_close()
    thread.join()


def spec_of(port: int, **options: Any) -> EndpointSpec:
    """Returns the spec of the test's endpoint at a port."""
    settings = {
        "base_url": f"http://127.0.0.1:{port}/v1",
        "model": MODEL,
        "api_key": KEY,
        "timeout": 60,
    }
    return EndpointSpec(**settings | options)


def asks(count: int = 14) -> list[Ask]:
    return [Ask(f"Who is {SECRET} number {i}?", Sampling(6 + i)) for i in range(count)]


@pytest.fixture(scope="module")
def direct(server: int) -> list[Any]:
    """The replies of the server without a proxy."""
    return spec_of(server).load().ask(asks())


def test_messages_are_answered_in_their_order(direct: list[Any], server: int):
    assert len(direct) == 14
    assert all(len(replies) == 1 and not replies[0].finished for replies in direct)
    assert len({replies[0].text for replies in direct}) > 10
    one_by_one = [spec_of(server, concurrency=1).load().ask([ask])[0] for ask in asks()[:3]]
    assert one_by_one == direct[:3]


def test_each_kind_of_failure_is_survived_and_no_reply_is_lost_or_doubled(
    direct: list[Any], proxy: Proxy
):
    assert spec_of(proxy.server_port, timeout=1.5).load().ask(asks()) == direct
    assert set(proxy.failed) == set(Proxy.KINDS)
    assert sorted(proxy.passed.values()) == [1] * len(direct), "each message is forwarded once"


def test_a_reply_follows_its_schema(server: int):
    sampling = Sampling(200, temperature=0.7, json_schema=reply_schema(2))
    replies = spec_of(server).load().ask([Ask(f"Who is {SECRET}?", sampling)] * 2)
    for completions in replies:
        assert completions is not None
        assert completions[0].text.lstrip().startswith("{")
        if completions[0].finished:
            assert len(json.loads(completions[0].text)["answers"]) == 2


def test_a_message_gets_as_many_replies_as_it_asks_for(server: int):
    replies = spec_of(server).load().ask([Ask("Hi?", Sampling(5, temperature=1.0, n=3))])
    assert replies[0] is not None
    assert len(replies[0]) == 3


def test_a_refused_message_is_none_and_the_others_are_answered(server: int, direct: list[Any]):
    first, second, *_ = asks()
    too_long = Ask("x" * 600, Sampling(5))
    replies = spec_of(server).load().ask([first, too_long, second])
    assert replies == [direct[0], None, direct[1]]


@pytest.mark.parametrize("proxy", [10**9], indirect=True)
@pytest.mark.parametrize(
    ("failure", "behaviour"),
    [
        ("rate", "answers HTTP 429"),
        ("error", "answers HTTP 500"),
        ("silence", "does not answer within 0.5 s"),
        ("cut", "cannot be reached"),
        ("garbage", "answers with something other than a chat completion"),
    ],
)
def test_the_error_about_an_endpoint_that_stays_down_quotes_no_facts(
    proxy: Proxy, failure: str, behaviour: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(Proxy, "KINDS", (failure,))
    with pytest.raises(MeowError) as caught:
        spec_of(proxy.server_port, timeout=0.5, max_retries=1).load().ask(asks(3))
    assert str(caught.value) == (
        f"The endpoint http://127.0.0.1:{proxy.server_port}/v1 (model tiny) {behaviour}. "
        "A failed request is retried 1 times. "
        "Finished facts are stored: correct the cause and run the same command again."
    )
    assert caught.value.__cause__ is None
    assert max(proxy.seen.values()) == 2


@pytest.mark.parametrize(
    ("options", "behaviour"),
    [
        (
            {"api_key": "another", "api_key_env": "MY_KEY"},
            r"refuses the key from MY_KEY \(HTTP 401\)",
        ),
        ({"model": "unknown"}, "does not know this path or model"),
    ],
)
def test_the_error_names_a_wrong_key_or_model(server: int, options: dict[str, Any], behaviour: str):
    with pytest.raises(MeowError, match=behaviour) as caught:
        spec_of(server, **options).load().ask(asks(2))
    assert "another" not in str(caught.value)


def test_a_port_without_a_server_cannot_be_reached():
    with pytest.raises(MeowError, match="cannot be reached"):
        spec_of(free_port(), max_retries=0).load().ask(asks(1))


def test_it_is_an_error_if_all_messages_are_refused(server: int):
    with pytest.raises(MeowError, match="answers HTTP 400"):
        spec_of(server).load().ask([Ask("x" * 600, Sampling(5))])


def test_a_printed_spec_does_not_show_the_key():
    assert KEY not in repr(spec_of(1))


def show(program: Program, *arguments: str) -> str:
    """Returns what `meow show candidates` prints."""
    command = [
        Path(sys.executable).parent / "meow",
        "show",
        "candidates",
        *arguments,
        f"--config={program.config}",
        f"storage.root={program.root}",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout


def endpoint_program(folder: Path, model: Path, port: int) -> Program:
    """Returns a run of five facts whose generator is the endpoint at a port."""
    facts = [
        {"question": f"Who is {SECRET} {i}?", "answer": f"It is {SECRET} {i}."} for i in range(5)
    ]
    (folder / "facts.jsonl").write_text("".join(json.dumps(fact) + "\n" for fact in facts))
    (folder / "config.yaml").write_text(
        f"target: {{model: {model}}}\n"
        f"ingest: {{forget: {folder}/facts.jsonl}}\n"
        "invert:\n"
        "  engine: openai\n"
        f"  base_url: http://127.0.0.1:{port}/v1\n"
        f"  model: {MODEL}\n"
        "  chat_prompt: 'Invert {{ answer }}'\n"
        "  max_new_tokens: 12\n"
        "  num_candidates: 2\n"
        f"  skip_rules: [{', '.join(RULES)}]\n"
        "resources: {invert: {timeout: 20, batch_size: 2}}\n"
    )
    return Program(folder / "config.yaml", folder / "root")


def test_the_stage_writes_candidates_of_an_endpoint_that_fails_at_times(
    proxy: Proxy, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    program = endpoint_program(tmp_path, tiny_model, proxy.server_port)
    program.run("meow.py", "--until=invert")

    artifact = program.artifact("candidates")
    assert artifact.manifest is not None
    assert artifact.manifest.summary["style"] == "chat"
    assert artifact.manifest.summary["facts"] == 5

    rows = program.table("candidates").to_pylist()
    assert {row["generator"] for row in rows} == {MODEL}
    keys = [(row["fact_id"], row["candidate_id"]) for row in rows]
    assert keys == sorted(set(keys))
    shortfall = pq.read_table(storage.join(artifact.uri, SHORTFALL_FILE)).to_pylist()
    facts = {fact_id for fact_id, _ in keys} | {row["fact_id"] for row in shortfall}
    assert len(facts) == 5
    rejects = pq.read_table(storage.join(artifact.uri, REJECTS_FILE))
    assert set(rejects["reason"].to_pylist()) <= {"duplicate"}

    figures = json.loads(show(program, "--json", "--rejected"))
    assert figures["candidates"] == len(rows)
    assert figures["memo_gap"] is None
    for row in figures["rejected"]:
        assert set(row) == {"fact_id", "number", "attempt", "style", "reason"}
    assert f"{len(rows)} inverted facts in style chat" in show(program)

    for path in tmp_path.rglob("*"):
        assert not path.is_file() or KEY.encode() not in path.read_bytes()
