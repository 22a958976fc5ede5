"""Prompts for a model: the text of a question under a template, its tokens, and label masks."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

from jinja2 import StrictUndefined, Template, TemplateError, meta
from jinja2.sandbox import SandboxedEnvironment

from meow_ray.errors import MeowError
from meow_ray.models import ends
from meow_ray.models.control_tokens import MARK, ControlTokens, control_tokens, template_source

if TYPE_CHECKING:
    from meow_ray.config import Target

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

    Training, scoring and generation all use it, so that a model always sees the same prompt, and
    answers always have the same end.
    """

    tokenizer: Any = field(repr=False)
    template: str
    """`chat` (the tokenizer's chat template), `raw`, `tofu`, or a Jinja template."""
    system: str | None = None
    """System message of the chat template; None leaves it to the template."""
    variables: Mapping[str, Any] = field(default_factory=dict)
    """Variables of the template, such as `enable_thinking`."""

    @classmethod
    def of(cls, tokenizer: Any, target: "Target") -> "Prompter":
        """Returns the prompter of the section `target` for a tokenizer."""
        return cls(tokenizer, target.template, target.system, target.template_variables)

    # --- text -------------------------------------------------------------------------------------

    def prompt(self, question: str) -> str:
        """Returns the prompt of a question; text that is added to it is part of the answer.

        The control tokens that the template writes are marked; see `control_tokens`. `readable`
        removes the marks.
        """
        if self.template == "chat":
            return self.chat([{"role": "user", "content": question}])
        template = _TEMPLATES.get(self.template, self.template)
        fields = {"question": self.control.shield(question), **self.variables}
        return self.control.mark(fill(template, "target.template", **fields))

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
        shielded = [
            {**message, "content": self.control.shield(message["content"])} for message in messages
        ]
        try:
            text = self.tokenizer.apply_chat_template(
                shielded, tokenize=False, add_generation_prompt=True, **self.variables
            )
        except TemplateError as error:
            raise MeowError(
                f"The chat template of the model refuses the prompt ({error}). "
                "For the target model, change `target.system` or `target.template`."
            ) from None
        return self.control.mark(str(text))

    # --- tokens -----------------------------------------------------------------------------------

    def encode_prompt(self, text: str) -> list[int]:
        """Returns the tokens of a prompt, or of a plain text of a user.

        They begin as the tokenizer begins each text, unless the template writes that itself.
        """
        return self._encode_prompts([text])[0]

    def encode_text(self, text: str) -> list[int]:
        """Returns the tokens of a user's text alone."""
        return self.control.encode([text])[0]

    def encode_answer(self, answer: str) -> list[int]:
        """Returns the tokens of an answer, with the token that ends it."""
        return [*self.encode_text(answer), self.end]

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
        prompts = self._encode_prompts([self.prompt(question) for question in questions])
        targets = self.control.encode(answers)
        pairs = []
        for prompt_ids, answer_ids in zip(prompts, targets, strict=True):
            target = [*answer_ids, self.end]
            pairs.append((prompt_ids + target, [IGNORE] * len(prompt_ids) + target))
        return pairs

    def _encode_prompts(self, prompts: Sequence[str]) -> list[list[int]]:
        begin = [] if self.template == "chat" else _beginning(self.tokenizer)
        return [
            tokens if set(begin).intersection(tokens) else [*begin, *tokens]
            for tokens in self.control.encode(prompts)
        ]

    @property
    def control(self) -> ControlTokens:
        """The control tokens of the tokenizer."""
        return control_tokens(self.tokenizer)

    @cached_property
    def end(self) -> int:
        """The token that ends an answer.

        It is the one that the chat template writes after an assistant's turn if the prompts are
        turns of a chat: with `chat`, and with a Jinja template that writes control tokens of its
        own. Otherwise it is the end-of-sequence token of the tokenizer.
        """
        turn = None
        if self._writes_turns:
            turn = ends.end_of_turn(self.tokenizer, self._chat_variables)
        if turn is not None:
            return turn
        ends.check_end(self.tokenizer, "target.model")
        return int(self.tokenizer.eos_token_id)

    @property
    def _writes_turns(self) -> bool:
        if self.template == "chat" or self.template in _TEMPLATES:
            return self.template == "chat"
        names = self.tokenizer.convert_ids_to_tokens(_beginning(self.tokenizer))
        return bool(set(self.control.written(self.prompt(""))) - set(names))

    @property
    def _chat_variables(self) -> Mapping[str, Any]:
        """The variables, for the chat template; those of a Jinja template are not for it."""
        return self.variables if self.template == "chat" else {}

    # --- checks -----------------------------------------------------------------------------------

    @property
    def reads(self) -> list[str]:
        """The variables that the template reads, without those that are always set."""
        if self.template == "chat":
            return _variables_of(template_source(self.tokenizer), _SET_BY_TRANSFORMERS)
        return _variables_of(_TEMPLATES.get(self.template, self.template), ("question",))

    def check(self, key: str = "target.model") -> None:
        """Refuses a template that cannot be filled, and variables that it does not read.

        Args:
            key: the configuration key that names the model, for error messages.

        Raises:
            MeowError: the template or one of its variables is wrong, or the model has no end token.
        """
        ends.check_end(self.tokenizer, key)
        self.prompt("Who?")
        unknown = sorted(set(self.variables).difference(self.reads))
        if unknown:
            known = ", ".join(self.reads) or "none"
            raise MeowError(
                f"`target.template_variables`: the template does not read {', '.join(unknown)}. "
                f"It reads {known}. Correct the name or remove it."
            )


_SET_BY_TRANSFORMERS = (
    "messages",
    "tools",
    "documents",
    "add_generation_prompt",
    "continue_final_message",
    "raise_exception",
    "strftime_now",
    "namespace",
    "bos_token",
    "eos_token",
    "pad_token",
    "unk_token",
    "additional_special_tokens",
)


def _variables_of(template: str, always: Iterable[str]) -> list[str]:
    """Returns the variables that a Jinja template reads, in alphabetical order."""
    # the extensions that transformers gives to chat templates
    environment = SandboxedEnvironment(extensions=["jinja2.ext.loopcontrols"])
    source = _GENERATION_BLOCK.sub("", template)
    try:
        names = meta.find_undeclared_variables(environment.parse(source))
    except TemplateError:
        return []
    return sorted(names - {*always, *environment.globals})


_GENERATION_BLOCK = re.compile(r"\{%-?\s*(?:end)?generation\s*-?%\}")


def readable(prompt: str) -> str:
    """Returns a prompt without marks."""
    return prompt.replace(MARK, "")


@lru_cache(maxsize=16)
def _beginning(tokenizer: Any) -> list[int]:
    """Returns the tokens that a tokenizer puts before each text, such as `<s>`."""
    text = list(tokenizer("a", add_special_tokens=False)["input_ids"])
    whole = list(tokenizer("a")["input_ids"])
    starts = range(len(whole) - len(text) + 1)
    return whole[: next((i for i in starts if whole[i : i + len(text)] == text), 0)]
