"""Prompts for a model: the text of a question under a template, its tokens, and label masks."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from jinja2 import StrictUndefined, Template, TemplateError
from jinja2.sandbox import SandboxedEnvironment

from meow_ray.errors import MeowError

IGNORE = -100
"""Label of a token that does not contribute to the loss."""

_JINJA = SandboxedEnvironment(
    undefined=StrictUndefined, autoescape=False, keep_trailing_newline=True
)
_TEMPLATES = {
    "raw": "{{ question }} ",
    "tofu": "[INST] {{ question }} [/INST]",
}
"""Named templates, apart from `chat`.

`tofu` is the prompt of the TOFU benchmark for Llama-2 (arXiv 2401.06121).
"""


def fill(template: str, key: str, **fields: Any) -> str:
    """Fills a Jinja template; `key` is the configuration key that holds it.

    Raises:
        MeowError: the template is not valid Jinja, or uses a field that it does not have.
    """
    try:
        return _compiled(template).render(**fields)
    except (TemplateError, TypeError, ArithmeticError, ValueError) as error:
        raise MeowError(
            f"`{key}`: the Jinja template cannot be filled ({error}). "
            f"Its fields are {', '.join(fields)}."
        ) from None


@lru_cache(maxsize=64)
def _compiled(template: str) -> Template:
    return _JINJA.from_string(template)


@dataclass(frozen=True)
class Prompter:
    """Writes and tokenises the prompts of a model.

    Training, scoring and generation all use it, so that a model always sees the same prompt.
    """

    tokenizer: Any = field(repr=False)
    template: str
    """`chat` (the tokenizer's chat template), `raw`, `tofu`, or a Jinja template."""
    system: str | None = None
    """System message of the chat template; None leaves it to the template."""

    def prompt(self, question: str) -> str:
        """Returns the prompt of a question; the answer follows it directly."""
        if self.template == "chat":
            return self.chat([{"role": "user", "content": question}])
        template = _TEMPLATES.get(self.template, self.template)
        return fill(template, "target.template", question=question)

    def chat(self, messages: Sequence[dict[str, str]]) -> str:
        """Returns the prompt of a conversation, up to where the assistant's reply begins.

        Raises:
            MeowError: the tokenizer has no chat template, or its template refuses the messages.
        """
        if not getattr(self.tokenizer, "chat_template", None):
            raise MeowError(
                "`target.template`: the model's tokenizer has no chat template. "
                "Set `target.template` to raw, tofu or a Jinja template."
            )
        if self.system is not None:
            messages = [{"role": "system", "content": self.system}, *messages]
        try:
            text = self.tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True
            )
        except TemplateError as error:
            raise MeowError(
                f"The chat template of the model refuses the prompt ({error}). "
                "For the target model, change `target.system` or `target.template`."
            ) from None
        return str(text)

    def encode_prompt(self, text: str) -> list[int]:
        """Returns the tokens of a prompt; a chat template has already added its special tokens."""
        return list(self.tokenizer(text, add_special_tokens=self._adds_special_tokens)["input_ids"])

    def encode_answer(self, answer: str) -> list[int]:
        """Returns the tokens of an answer, with the end-of-sequence token."""
        ids = self.tokenizer(answer, add_special_tokens=False)["input_ids"]
        return [*ids, self.tokenizer.eos_token_id]

    def encode_pair(self, question: str, answer: str) -> tuple[list[int], list[int]]:
        """Returns (input_ids, labels) of a training pair, both `[seq]`.

        The labels of the prompt are `IGNORE`.
        """
        return self.encode_pairs([question], [answer])[0]

    def encode_pairs(
        self, questions: Sequence[str], answers: Sequence[str]
    ) -> list[tuple[list[int], list[int]]]:
        """Returns (input_ids, labels) of many training pairs, each both `[seq]`.

        The tokenizer is called once for all of them, which takes a fifth of the time of single
        calls.
        """
        prompts = self.tokenizer(
            [self.prompt(question) for question in questions],
            add_special_tokens=self._adds_special_tokens,
        )["input_ids"]
        targets = self.tokenizer(list(answers), add_special_tokens=False)["input_ids"]
        pairs = []
        for prompt_ids, answer_ids in zip(prompts, targets, strict=True):
            target = [*answer_ids, self.tokenizer.eos_token_id]
            pairs.append((prompt_ids + target, [IGNORE] * len(prompt_ids) + target))
        return pairs

    @property
    def _adds_special_tokens(self) -> bool:
        return self.template != "chat"
