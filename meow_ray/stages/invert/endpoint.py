"""An OpenAI-compatible endpoint that writes inverted facts or judges them."""

import asyncio
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from meow_ray.config import InvertResources
from meow_ray.engines import Completion
from meow_ray.errors import MeowError
from meow_ray.stages.invert.generators import Ask


@dataclass(frozen=True)
class EndpointSpec:
    """An OpenAI-compatible chat endpoint."""

    needs_gpu: ClassVar[bool] = False
    base_url: str
    model: str
    api_key: str = field(repr=False)
    api_key_env: str = "OPENAI_API_KEY"
    structured: bool = True
    """It takes a JSON schema as `response_format`."""
    concurrency: int = 16
    timeout: float = 120.0
    max_retries: int = 6

    def load(self) -> "Endpoint":
        """Opens no connection yet."""
        return Endpoint(self)


def endpoint_spec(
    base_url: str | None,
    model: str | None,
    api_key_env: str,
    structured: bool,
    resources: InvertResources,
) -> EndpointSpec:
    """Says how an endpoint is asked; its key comes from the environment.

    Raises:
        MeowError: URL or model is not set.
    """
    if base_url is None or model is None:
        raise MeowError(
            "An endpoint is a URL and a model: set `invert.base_url` and `invert.model`, or for a judge "
            "`invert.judge_base_url` and `invert.judge_model`."
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
    )


class _NoCompletionError(Exception):
    """The endpoint answered with something that is no chat completion."""


class Endpoint:
    """Asks over HTTP, several messages at a time; refused rates and failures are retried with back-off."""

    styles = ("chat",)

    def __init__(self, spec: EndpointSpec) -> None:
        self.spec, self.generated = spec, 0

    def ask(self, asks: Sequence[Ask]) -> list[list[Completion] | None]:
        """See `Generator.ask`.

        Raises:
            MeowError: the endpoint stays down, refuses the key or the model, or refuses every message.
        """
        return asyncio.run(self._ask(asks)) if asks else []

    async def _ask(self, asks: Sequence[Ask]) -> list[list[Completion] | None]:
        import openai
        from tenacity import (
            AsyncRetrying,
            RetryError,
            retry_if_exception_type,
            stop_after_attempt,
            wait_random_exponential,
        )

        spec, turns, refused = self.spec, asyncio.Semaphore(self.spec.concurrency), []

        async def one(client: openai.AsyncOpenAI, ask: Ask) -> list[Completion] | None:
            again = AsyncRetrying(
                retry=retry_if_exception_type(_NoCompletionError),
                wait=wait_random_exponential(multiplier=0.5, max=30),
                stop=stop_after_attempt(spec.max_retries + 1),
            )
            async with turns:
                try:
                    return await again(self._complete, client, ask)
                except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
                    refused.append(error)
                    return None

        try:
            async with (
                openai.AsyncOpenAI(
                    base_url=spec.base_url,
                    api_key=spec.api_key,
                    timeout=spec.timeout,
                    max_retries=spec.max_retries,
                ) as client,
                asyncio.TaskGroup() as group,
            ):
                tasks = [group.create_task(one(client, ask)) for ask in asks]
        except BaseExceptionGroup as errors:
            error = _first(errors)
            if not isinstance(error, openai.OpenAIError | RetryError):
                raise
            raise MeowError(self._reason(error)) from None
        if len(refused) == len(asks):
            raise MeowError(self._reason(refused[0]))
        return [task.result() for task in tasks]

    async def _complete(self, client: Any, ask: Ask) -> list[Completion]:
        from openai.types.chat import ChatCompletion

        sampling = ask.sampling
        options: dict[str, Any] = {}
        if sampling.json_schema and self.spec.structured:
            schema = {"name": "reply", "schema": json.loads(sampling.json_schema), "strict": True}
            options["response_format"] = {"type": "json_schema", "json_schema": schema}
        if sampling.seed is not None:
            options["seed"] = sampling.seed
        try:
            reply = await client.chat.completions.create(
                model=self.spec.model,
                messages=[{"role": "user", "content": ask.text}],
                max_completion_tokens=sampling.max_new_tokens,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                n=sampling.n,
                **options,
            )
        except ValueError:  # a body that is no JSON
            raise _NoCompletionError from None
        if not isinstance(reply, ChatCompletion) or not reply.choices:
            raise _NoCompletionError
        self.generated += reply.usage.completion_tokens if reply.usage else 0
        return [
            Completion(choice.message.content or "", choice.finish_reason == "stop")
            for choice in reply.choices
        ]

    def _reason(self, error: BaseException) -> str:
        """Says what is wrong without the messages, which may hold facts."""
        import openai

        spec, what = self.spec, "answers with something that is no chat completion"
        if isinstance(error, openai.AuthenticationError | openai.PermissionDeniedError):
            what = (
                f"refuses the key (HTTP {error.status_code}), which is read from {spec.api_key_env}"
            )
        elif isinstance(error, openai.NotFoundError):
            what = "does not know this path or model (HTTP 404)"
        elif isinstance(error, openai.APIStatusError):
            detail = ", ".join(str(part) for part in (error.code, error.param) if part)
            what = f"answers HTTP {error.status_code}{f' ({detail})' if detail else ''}"
        elif isinstance(error, openai.APITimeoutError):
            what = f"does not answer within {spec.timeout:g} s"
        elif isinstance(error, openai.APIConnectionError):
            what = "cannot be reached"
        return (
            f"The endpoint {spec.base_url} (model {spec.model}) {what}; failures are retried {spec.max_retries} times. "
            "Facts that are finished are kept: run again to go on."
        )


def _first(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    error: BaseException = errors
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
