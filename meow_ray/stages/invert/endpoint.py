"""OpenAI-compatible endpoints that write inverted facts or judge them."""

import asyncio
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from meow_ray.config import InvertResources
from meow_ray.engines import Completion
from meow_ray.errors import MeowError
from meow_ray.stages.invert.dialect import Dialect, places, refused_field
from meow_ray.stages.invert.generators import Ask


@dataclass(frozen=True)
class EndpointSpec:
    """A description of an OpenAI-compatible chat endpoint and of how it is asked."""

    needs_gpu: ClassVar[bool] = False
    base_url: str
    model: str
    api_key: str = field(repr=False)
    api_key_env: str = "OPENAI_API_KEY"
    """The environment variable that the key came from, for error messages."""
    structured: bool = True
    """Whether the endpoint takes a JSON schema as `response_format`."""
    concurrency: int = 16
    """Requests in flight at once."""
    timeout: float = 120.0
    """Seconds until a request fails."""
    max_retries: int = 6
    """Further tries of a failed request."""
    template_variables: Mapping[str, Any] = field(default_factory=dict)
    """Variables of the chat template, for servers such as vLLM's and SGLang's."""
    may_refuse_all: bool = False
    """Whether the endpoint may refuse all messages of a batch; otherwise that is an error."""

    def load(self) -> "Endpoint":
        """Returns the generator behind the endpoint; no connection is opened yet."""
        return Endpoint(self)


def endpoint_spec(
    base_url: str | None,
    model: str | None,
    api_key_env: str,
    structured: bool,
    resources: InvertResources,
    template_variables: Mapping[str, Any] | None = None,
) -> EndpointSpec:
    """Returns the description of a configured endpoint, with its key from the environment.

    Raises:
        MeowError: URL or model is not set.
    """
    if base_url is None or model is None:
        raise MeowError(
            "`invert`: an endpoint needs a URL and a model name. Set `invert.base_url` and "
            "`invert.model`, or for a judge `invert.judge_base_url` and `invert.judge_model`."
        )
    return EndpointSpec(
        base_url=base_url,
        model=model,
        api_key=os.environ.get(api_key_env) or "none",
        api_key_env=api_key_env,
        structured=structured,
        concurrency=resources.concurrency,
        timeout=resources.timeout,
        max_retries=resources.max_retries,
        template_variables=template_variables or {},
    )


class _NoCompletionError(Exception):
    """A reply of an endpoint that is not a chat completion."""


class Endpoint:
    """A generator behind an OpenAI-compatible endpoint.

    It sends several messages at once. A request that fails or that the endpoint limits is retried
    with back-off. A field that the endpoint refuses is left out from then on.
    """

    styles: tuple[str, ...] = ("chat",)

    def __init__(self, spec: EndpointSpec) -> None:
        self.spec = spec
        self.generated = 0
        self.dialect = Dialect(spec.structured)

    @property
    def left_out(self) -> tuple[str, ...]:
        """The fields that the endpoint has refused; see `Generator.left_out`."""
        return tuple(self.dialect.refused)

    def ask(self, asks: Sequence[Ask]) -> list[list[Completion] | None]:
        """Returns the replies to each message; see `Generator.ask`.

        Raises:
            MeowError: the endpoint stays down, or it refuses the key, the model or all messages.
        """
        return asyncio.run(self._ask_all(asks)) if asks else []

    async def _ask_all(self, asks: Sequence[Ask]) -> list[list[Completion] | None]:
        import openai
        from tenacity import RetryError

        turns = asyncio.Semaphore(self.spec.concurrency)
        refusals: list[Exception] = []
        try:
            async with self._client() as client, asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(self._ask_one(client, ask, turns, refusals)) for ask in asks
                ]
        except BaseExceptionGroup as errors:
            error = _first(errors)
            if not isinstance(error, openai.OpenAIError | RetryError):
                raise
            raise MeowError(self._describe(error)) from None
        if len(refusals) == len(asks) and not self.spec.may_refuse_all:
            raise MeowError(self._describe(refusals[0]))
        return [task.result() for task in tasks]

    def _client(self) -> Any:
        import openai

        return openai.AsyncOpenAI(
            base_url=self.spec.base_url,
            api_key=self.spec.api_key,
            timeout=self.spec.timeout,
            max_retries=self.spec.max_retries,
        )

    async def _ask_one(
        self, client: Any, ask: Ask, turns: asyncio.Semaphore, refusals: list[Exception]
    ) -> list[Completion] | None:
        """Returns the replies to a message.

        Returns None and adds the error to `refusals` if the endpoint refuses the message.
        """
        import openai
        from tenacity import (
            AsyncRetrying,
            retry_if_exception_type,
            stop_after_attempt,
            wait_random_exponential,
        )

        retrying = AsyncRetrying(
            retry=retry_if_exception_type(_NoCompletionError),
            wait=wait_random_exponential(multiplier=0.5, max=30),
            stop=stop_after_attempt(self.spec.max_retries + 1),
        )
        async with turns:
            try:
                return await retrying(self._complete, client, ask)
            except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
                refusals.append(error)
                return None

    async def _complete(self, client: Any, ask: Ask) -> list[Completion]:
        """Returns the completions of a message, in as many requests as the endpoint needs."""
        completions: list[Completion] = []
        while len(completions) < ask.sampling.n:
            completions += await self._request(client, ask, known=len(completions))
        return completions[: ask.sampling.n]

    async def _request(self, client: Any, ask: Ask, known: int) -> list[Completion]:
        """Asks for the completions that are missing.

        A field that the endpoint refuses is left out, and the request is sent again. Each field is
        refused once, so the requests come to an end.

        Args:
            client: the client of the endpoint.
            ask: the message.
            known: the number of completions so far, which gives each request another seed.
        """
        import openai

        sampling = ask.sampling
        seed = None if sampling.seed is None else (sampling.seed + known) % 2**31
        while True:
            fields = self.dialect.fields(sampling, sampling.n - known, seed)
            try:
                return await self._send(client, ask.text, fields)
            except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
                refused = refused_field(error.body, fields)
                if refused is None:
                    raise
                self.dialect.refuse(refused)

    async def _send(self, client: Any, text: str, fields: dict[str, Any]) -> list[Completion]:
        """Sends a request and returns its completions."""
        from openai.types.chat import ChatCompletion

        variables = self.spec.template_variables
        try:
            reply = await client.chat.completions.create(
                model=self.spec.model,
                messages=[{"role": "user", "content": text}],
                extra_body={"chat_template_kwargs": dict(variables)} if variables else None,
                **fields,
            )
        except ValueError:  # the body is not JSON
            raise _NoCompletionError from None
        if not isinstance(reply, ChatCompletion) or not reply.choices:
            raise _NoCompletionError
        self.generated += reply.usage.completion_tokens if reply.usage else 0
        return [
            Completion(choice.message.content or "", choice.finish_reason == "stop")
            for choice in reply.choices
        ]

    def _describe(self, error: BaseException) -> str:
        """Returns an error message that names the endpoint and what it does.

        It quotes neither the messages nor the replies, which may hold facts.
        """
        spec = self.spec
        return (
            f"The endpoint {spec.base_url} (model {spec.model}) {self._behaviour(error)}. "
            f"A failed request is retried {spec.max_retries} times. "
            "Finished facts are stored: correct the cause and run the same command again."
        )

    def _behaviour(self, error: BaseException) -> str:
        import openai

        if isinstance(error, openai.AuthenticationError | openai.PermissionDeniedError):
            return f"refuses the key from {self.spec.api_key_env} (HTTP {error.status_code})"
        if isinstance(error, openai.NotFoundError):
            return "does not know this path or model (HTTP 404)"
        if isinstance(error, openai.APIStatusError):
            details = ", ".join(str(part) for part in (error.code, *places(error.body)) if part)
            return f"answers HTTP {error.status_code}{f' ({details})' if details else ''}"
        if isinstance(error, openai.APITimeoutError):
            return f"does not answer within {self.spec.timeout:g} s"
        if isinstance(error, openai.APIConnectionError):
            return "cannot be reached"
        return "answers with something other than a chat completion"


def _first(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    """Returns the first error of a group that is not a group itself."""
    error: BaseException = errors
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
