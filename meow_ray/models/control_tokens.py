"""Control tokens of a tokenizer: those that a template writes, told from those in a user's text.

A text of a user may hold what looks like a control token, such as `</s>` in a manual. Read as a
token, it would end the answer in the middle, or open a turn. Prompts are therefore strings in which
each control token of the *template* is marked, and everything else is text:

    prompt = tokens.mark(render(tokens.shield(question)))
    ids = tokens.encode([prompt])

The marks are noncharacters, which Unicode reserves for use inside a program.
"""

import json
import re
from collections.abc import Sequence
from functools import cached_property, lru_cache
from typing import Any

from meow_ray.errors import MeowError

MARK = "\ufdd0"
"""Precedes a control token that a template has written."""
_SHIELD = "\ufdd1"
"""Follows the first character of a control token in a user's text while a template is rendered."""


def control_tokens(tokenizer: Any) -> "ControlTokens":
    """Returns the control tokens of a tokenizer with its present chat template."""
    return _of_template(tokenizer, template_source(tokenizer))


@lru_cache(maxsize=8)
def _of_template(tokenizer: Any, template: str) -> "ControlTokens":
    return ControlTokens(tokenizer, template)


def template_source(tokenizer: Any) -> str:
    """Returns the source of a tokenizer's chat template; empty without one."""
    templates = getattr(tokenizer, "chat_template", None) or ""
    return "\n".join(templates.values()) if isinstance(templates, dict) else str(templates)


class ControlTokens:
    """The control tokens of a tokenizer, and the tokenisation of texts that hold their names.

    Control tokens are the special ones, and those that the chat template writes.

    Args:
        tokenizer: the tokenizer.
        template: the source of its chat template.
    """

    def __init__(self, tokenizer: Any, template: str) -> None:
        self.tokenizer = tokenizer
        added = tokenizer.added_tokens_decoder
        self.names: dict[str, int] = {
            token.content: number
            for number, token in added.items()
            if token.special or _is_written_by(template, token.content)
        }
        longest_first = sorted(self.names, key=len, reverse=True)
        names = "|".join(map(re.escape, longest_first)) or "(?!)"
        self._any = re.compile(names)
        self._marked = re.compile(f"{MARK}({names})")
        self._in_text = re.compile(f"(?<!{MARK})(?:{names})")

    def find(self, text: str) -> str | None:
        """Returns the first control token that a text holds as text; None without one."""
        found = self._in_text.search(text)
        return found[0] if found else None

    def written(self, prompt: str) -> list[str]:
        """Returns the control tokens that a template has written, in order."""
        return self._marked.findall(prompt)

    def shield(self, text: str) -> str:
        """Returns a user's text for a template, which takes none of it for a control token."""
        return self._any.sub(lambda found: found[0][0] + _SHIELD + found[0][1:], text)

    def mark(self, rendered: str) -> str:
        """Marks the control tokens of a rendered template, and removes the shields in it."""
        return self._any.sub(lambda found: MARK + found[0], rendered).replace(_SHIELD, "")

    def encode(self, prompts: Sequence[str]) -> list[list[int]]:
        """Returns the tokens of marked prompts or texts, without tokens at their beginning.

        Raises:
            MeowError: a text holds a control token that the tokenizer cannot read as text.
        """
        if not prompts:
            return []
        plain = [prompt.replace(MARK, "") for prompt in prompts]
        ids = self.tokenizer(plain, add_special_tokens=False)["input_ids"]
        return [
            self._encode_as_text(prompt) if self.find(prompt) else list(tokens)
            for prompt, tokens in zip(prompts, ids, strict=True)
        ]

    def encode_with_spans(self, text: str) -> tuple[list[int], list[tuple[int, int]] | None]:
        """Returns the tokens of a text as `encode` does, and start and end of each in the text.

        The places are None for a tokenizer in Python, which does not tell them.

        Raises:
            MeowError: the text holds a control token that the tokenizer cannot read as text.
        """
        if not self.tokenizer.is_fast:
            return self.encode([text])[0], None
        if self.find(text):
            backend = self._backend_for_text(text)
            encoded = backend.encode(text, add_special_tokens=False)
            return list(encoded.ids), list(encoded.offsets)
        tokens = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        return list(tokens["input_ids"]), list(tokens["offset_mapping"])

    def fault(self, text: str) -> str | None:
        """Returns why a text cannot be tokenised as text, or None if it can."""
        name = self.find(text)
        if name is None or self._text_backend is not None:
            return None
        return f"{name} is a control token of the model, whose tokenizer cannot read it as text"

    def _encode_as_text(self, prompt: str) -> list[int]:
        backend = self._backend_for_text(prompt)
        return list(backend.encode(prompt, add_special_tokens=False).ids)

    def _backend_for_text(self, prompt: str) -> Any:
        """Returns the tokenizer that reads the control tokens of a prompt as text."""
        if self._text_backend is None:
            raise MeowError(
                f"`target.model`: a text holds {self.find(prompt)}, which is a control token of "
                "the model, and its tokenizer cannot read it as text. Remove it from the text."
            )
        return self._text_backend

    @cached_property
    def _text_backend(self) -> Any | None:
        """The same tokenizer, for which only marked control tokens are control tokens.

        None for a tokenizer in Python, which has no such form.
        """
        from tokenizers import Tokenizer

        if not self.tokenizer.is_fast:
            return None
        settings = json.loads(self.tokenizer.backend_tokenizer.to_str())
        settings |= {"truncation": None, "padding": None}
        for token in settings["added_tokens"]:
            token["content"] = self._with_mark(token["content"])
        model = settings["model"]
        if isinstance(model["vocab"], dict):
            model["vocab"] = {self._with_mark(name): i for name, i in model["vocab"].items()}
        else:  # Unigram: pieces with scores
            model["vocab"] = [[self._with_mark(name), score] for name, score in model["vocab"]]
        if model.get("unk_token"):
            model["unk_token"] = self._with_mark(model["unk_token"])
        try:
            backend = Tokenizer.from_str(json.dumps(settings))
        except Exception:  # noqa: BLE001 - the library raises plain exceptions
            return None  # a merge of the vocabulary makes a control token
        same = all(backend.token_to_id(MARK + name) == i for name, i in self.names.items())
        return backend if same else None

    def _with_mark(self, name: str) -> str:
        return MARK + name if name in self.names else name


def _is_written_by(template: str, name: str) -> bool:
    """Tells whether a template writes a token, such as `<think>`; words and blanks do not count."""
    return name in template and not name.isspace() and not name.isalnum()
