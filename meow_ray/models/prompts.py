"""From a question to what a model reads: templates, tokens, label masks."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from jinja2 import StrictUndefined, Template, TemplateError
from jinja2.sandbox import SandboxedEnvironment

from meow_ray.errors import MeowError

IGNORE = -100
"""Label of a token that no loss is taken on."""

_JINJA = SandboxedEnvironment(
    undefined=StrictUndefined, autoescape=False, keep_trailing_newline=True
)
_TEMPLATES = {
    "raw": "{{ question }} ",
    "tofu": "[INST] {{ question }} [/INST]",
}
"""Named prompts besides `chat`. `tofu` is that of the TOFU benchmark for Llama-2 (arXiv 2401.06121)."""


def fill(template: str, key: str, **fields: Any) -> str:
    """Fills a Jinja template; `key` is the configuration key it comes from.

    Raises:
        MeowError: the template is not valid Jinja or uses a field that it does not have.
    """
    try:
        return _compiled(template).render(**fields)
    except (TemplateError, TypeError, ArithmeticError, ValueError) as error:
        raise MeowError(f"`{key}`: {error}; fields are {', '.join(fields)}.") from None


@lru_cache(maxsize=64)
def _compiled(template: str) -> Template:
    return _JINJA.from_string(template)


@dataclass(frozen=True)
class Prompter:
    """Writes prompts for one model. Training, scoring and generation all go through it, so that they agree."""

    tokenizer: Any = field(repr=False)
    template: str
    system: str | None = None

    def prompt(self, question: str) -> str:
        """Returns the text after which the answer follows."""
        if self.template == "chat":
            return self.chat([{"role": "user", "content": question}])
        return fill(
            _TEMPLATES.get(self.template, self.template), "target.template", question=question
        )

    def chat(self, messages: Sequence[dict[str, str]]) -> str:
        """Returns messages through the tokenizer's chat template, ready for the assistant to speak."""
        if not getattr(self.tokenizer, "chat_template", None):
            raise MeowError(
                "The model's tokenizer has no chat template; set `target.template` to raw, tofu or your own."
            )
        if self.system is not None:
            messages = [{"role": "system", "content": self.system}, *messages]
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    messages, tokenize=False, add_generation_prompt=True
                )
            )
        except TemplateError as error:
            raise MeowError(
                f"The chat template of the model refuses the prompt: {error}."
            ) from None

    def encode_prompt(self, text: str) -> list[int]:
        """Returns a prompt's tokens; a chat template has written its special tokens itself."""
        return list(self.tokenizer(text, add_special_tokens=self.template != "chat")["input_ids"])

    def encode_answer(self, answer: str) -> list[int]:
        """Returns an answer's tokens with the end-of-sequence token."""
        return [
            *self.tokenizer(answer, add_special_tokens=False)["input_ids"],
            self.tokenizer.eos_token_id,
        ]

    def encode_pair(self, question: str, answer: str) -> tuple[list[int], list[int]]:
        """Returns (input_ids, labels) of a training pair, both `[seq]`; the prompt's labels are `IGNORE`."""
        return self.encode_pairs([question], [answer])[0]

    def encode_pairs(
        self, questions: Sequence[str], answers: Sequence[str]
    ) -> list[tuple[list[int], list[int]]]:
        """Returns the same of many pairs, which takes a fifth of the time."""
        special, end = self.template != "chat", self.tokenizer.eos_token_id
        prompts = self.tokenizer(
            [self.prompt(text) for text in questions], add_special_tokens=special
        )["input_ids"]
        targets = [
            [*ids, end]
            for ids in self.tokenizer(list(answers), add_special_tokens=False)["input_ids"]
        ]
        return [
            (prompt + target, [IGNORE] * len(prompt) + target)
            for prompt, target in zip(prompts, targets, strict=True)
        ]
