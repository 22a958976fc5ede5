"""The variables of the generator's chat template, and control tokens in messages to it."""

import json
import threading
from collections.abc import Sequence
from copy import deepcopy
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

from meow_ray.engines import Completion, Sampling
from meow_ray.planning.tally import Tally
from meow_ray.stages.invert.endpoint import EndpointSpec
from meow_ray.stages.invert.generators import Ask, LocalGenerator
from tests.support.tiny import CHAT_TEMPLATE

ASK = Ask("What is <|end|>?", Sampling(8))


class Recording(Tally):
    """An engine that keeps the prompts that it is asked."""

    def generate(
        self, prompts: Sequence[Sequence[int]], sampling: Sequence[Sampling]
    ) -> list[list[Completion]]:
        self.prompts = [list(prompt) for prompt in prompts]
        return super().generate(prompts, sampling)


def test_a_local_generator_passes_them_and_reads_a_message_as_text(tiny_tokenizer: Any):
    tokenizer = deepcopy(tiny_tokenizer)
    tokenizer.chat_template = CHAT_TEMPLATE + "{% if plain %}!{% endif %}"
    engine = Recording(tokenizer, max_model_len=100)
    LocalGenerator(engine, {"plain": True}).ask([ASK])
    (prompt,) = engine.prompts
    assert tokenizer.decode(prompt) == "<s><|user|>What is <|end|>?<|end|><|assistant|>!"
    assert prompt.count(tokenizer.convert_tokens_to_ids("<|end|>")) == 1


def test_an_endpoint_gets_them_in_the_body_of_each_request():
    bodies = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            message = {"role": "assistant", "content": "Yes."}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            reply = {"id": "1", "object": "chat.completion", "created": 0, "model": "m"}
            data = json.dumps(reply | {"choices": [choice]}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *arguments: Any) -> None:
            """Prints nothing."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/v1"
    for variables in ({"enable_thinking": False}, {}):
        EndpointSpec(url, "m", "none", template_variables=variables).load().ask([ASK])
    server.shutdown()
    assert bodies[0]["chat_template_kwargs"] == {"enable_thinking": False}
    assert "chat_template_kwargs" not in bodies[1]
