"""Generators, which write inverted facts: what they are asked, and one that runs an engine here.

A generator behind an OpenAI-compatible endpoint is in `endpoint`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

from meow_ray.engines import Completion, Engine, EngineSpec, Sampling
from meow_ray.models.prompts import Prompter


@dataclass(frozen=True)
class Ask:
    """A message to a generator, and how its replies are sampled."""

    text: str = field(repr=False)
    """The user's message."""
    sampling: Sampling
    head: str = field(default="", repr=False)
    """The beginning of each reply, which the generator continues.

    It is not part of the replies that come back. An endpoint ignores it.
    """


class Generator(Protocol):
    """A loaded model that answers messages."""

    styles: tuple[str, ...]
    """The values of `invert.style` that it supports."""
    generated: int
    """Tokens generated so far."""

    @property
    def left_out(self) -> tuple[str, ...]:
        """Names of the settings of an `Ask` that it has refused and that are no longer sent."""
        ...

    def ask(self, asks: Sequence[Ask]) -> list[list[Completion] | None]:
        """Returns `sampling.n` replies to each message, in order.

        The entry of a message is None if the generator refuses it as too long.
        """
        ...


class GeneratorSpec(Protocol):
    """A description from which a process loads a generator."""

    def load(self) -> Generator:
        """Loads the generator in this process."""
        ...


@dataclass(frozen=True)
class LocalSpec:
    """A description of a generator that runs an engine in its own process."""

    needs_gpu: ClassVar[bool] = True
    engine: EngineSpec
    variables: Mapping[str, Any] = field(default_factory=dict)
    """`invert.template_variables`."""

    def load(self) -> "LocalGenerator":
        """Loads the engine in this process."""
        return LocalGenerator(self.engine.load(), self.variables)


class LocalGenerator:
    """A generator that runs an engine in its own process.

    Messages go through the model's chat template. A model without one gets the plain message and a
    line break.
    """

    styles: tuple[str, ...] = ("chat", "prefill")
    left_out: tuple[str, ...] = ()

    def __init__(self, engine: Engine, variables: Mapping[str, Any] | None = None) -> None:
        self.engine = engine
        self.warning = getattr(engine, "warning", None)
        self.generated = 0
        has_chat_template = getattr(engine.tokenizer, "chat_template", None)
        template = "chat" if has_chat_template else "raw"
        self.prompter = Prompter(engine.tokenizer, template, variables=variables or {})

    def ask(self, asks: Sequence[Ask]) -> list[list[Completion] | None]:
        """Returns the replies to each message; see `Generator.ask`."""
        prompts = [
            self.prompter.encode_prompt(self._user_message(ask.text) + ask.head) for ask in asks
        ]
        fitting = [
            index
            for index, (ask, prompt) in enumerate(zip(asks, prompts, strict=True))
            if len(prompt) + ask.sampling.max_new_tokens <= self.engine.max_model_len
        ]
        replies = self.engine.generate(
            [prompts[index] for index in fitting], [asks[index].sampling for index in fitting]
        )
        self.generated = self.engine.generated
        replies_by_index = dict(zip(fitting, replies, strict=True))
        return [replies_by_index.get(index) for index in range(len(asks))]

    def _user_message(self, text: str) -> str:
        """Returns the prompt of a message, up to where the reply begins."""
        if self.prompter.template == "raw":
            return f"{text}\n"
        return self.prompter.chat([{"role": "user", "content": text}])
