"""Who writes inverted facts: an engine in this process, or an OpenAI-compatible endpoint."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

from meow_ray.engines import Completion, Engine, EngineSpec, Sampling
from meow_ray.models.prompts import Prompter


@dataclass(frozen=True)
class Ask:
    """What a generator is asked."""

    text: str = field(repr=False)
    """The user's message."""
    sampling: Sampling
    head: str = field(default="", repr=False)
    """What the reply begins with; not in what comes back. An endpoint cannot be held to it."""


class Generator(Protocol):
    """Answers messages."""

    styles: tuple[str, ...]
    """The values of `invert.style` that it can follow."""
    generated: int
    """Tokens generated so far."""

    def ask(self, asks: Sequence[Ask]) -> list[list[Completion] | None]:
        """Returns `sampling.n` replies to each message, in order; None where it refuses the message as too long."""
        ...


# --- an engine ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class LocalSpec:
    """An engine that writes."""

    needs_gpu: ClassVar[bool] = True
    engine: EngineSpec

    def load(self) -> "LocalGenerator":
        """Loads the engine in this process."""
        return LocalGenerator(self.engine.load())


class LocalGenerator:
    """Asks through the model's chat template, or in plain lines if it has none."""

    styles: tuple[str, ...] = ("chat", "prefill")

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.generated = 0
        has_chat = getattr(engine.tokenizer, "chat_template", None)
        self.prompter = Prompter(engine.tokenizer, "chat" if has_chat else "raw")

    def ask(self, asks: Sequence[Ask]) -> list[list[Completion] | None]:
        """See `Generator.ask`."""
        prompts = [self.prompter.encode_prompt(self._as_user(ask.text) + ask.head) for ask in asks]
        room = self.engine.max_model_len
        fits = [
            i for i, p in enumerate(prompts) if len(p) + asks[i].sampling.max_new_tokens <= room
        ]
        replies = self.engine.generate([prompts[i] for i in fits], [asks[i].sampling for i in fits])
        self.generated = self.engine.generated
        found: dict[int, list[Completion]] = dict(zip(fits, replies, strict=True))
        return [found.get(i) for i in range(len(asks))]

    def _as_user(self, text: str) -> str:
        if self.prompter.template == "raw":
            return f"{text}\n"
        return self.prompter.chat([{"role": "user", "content": text}])


# --- an endpoint --------------------------------------------------------------------------------
