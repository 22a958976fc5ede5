"""Checks of the models and of the lengths of texts that several stages share."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from meow_ray.config import Config, FineTuning, Target
from meow_ray.core.stage import Known
from meow_ray.errors import MeowError
from meow_ray.models import checks, ends, refs
from meow_ray.models.prompts import Prompter
from meow_ray.models.refs import ModelRef
from meow_ray.stages.inputs import model_ref, target_prompter

NAMED = 10
"""The largest number of rows that one message names."""
PIECE = 4096
"""Number of pairs that are tokenised at once."""
MOST_TOKENS_PER_BYTE = 11
"""No tokenizer makes more of a text: a token has a byte, and Unicode's longest expansion (NFKC, of
U+FDFA) makes 33 bytes of 3."""


# --- models ---------------------------------------------------------------------------------------


def target_ahead(config: Config, known: Known) -> tuple[ModelRef, str] | None:
    """Returns the target, or the model that it will be made of, with the key that names it."""
    for name, key in (("target", "target.model"), ("base", "memorize.model")):
        if name in known:
            ref = model_ref(known[name])
            trusted = ref.trust_remote_code or config.target.trust_remote_code
            return replace(ref, trust_remote_code=trusted), key
    return None


def generator_ahead(known: Known) -> ModelRef | None:
    """Returns the generator if it is a model that runs here."""
    generator = known.get("generator")
    return generator.value if generator and isinstance(generator.value, ModelRef) else None


def check_target(config: Config, known: Known) -> Iterator[str]:
    """Finds why the target is no decoder that can be prompted with the configured template."""
    target = target_ahead(config, known)
    if target is None:
        return
    faults = checks.model_faults(*target)
    yield from faults or prompt_faults(*target, config.target)


def prompt_faults(ref: ModelRef, key: str, section: Target) -> Iterator[str]:
    """Finds why prompts cannot be written for a model, or why its answers would not end."""
    try:
        target_prompter(ref, section).check(key)
    except MeowError as error:
        yield str(error)


def check_trainable(config: Config, known: Known) -> Iterator[str]:
    """Finds why the target can never be trained, even if the run ends before that for now."""
    target = target_ahead(config, known)
    if target is None or not readable(target[0]):
        return
    fault = checks.training_fault(*target)
    if fault:
        yield fault


def check_generator(config: Config, known: Known) -> Iterator[str]:
    """Finds why a generator that runs here is no decoder whose replies end."""
    generator = generator_ahead(known)
    if generator is None:
        return
    faults = checks.model_faults(generator, "invert.model")
    yield from faults
    if not faults:
        try:
            ends.check_end(refs.load_tokenizer(generator), "invert.model")
        except MeowError as error:
            yield str(error)


def check_target_engine(config: Config, known: Known) -> Iterator[str]:
    """Finds why the target's engine cannot load it."""
    target = target_ahead(config, known)
    if target is None or config.target.engine != "transformers":
        return
    fault = readable(target[0]) and checks.transformers_fault(*target, "target.engine")
    if fault:
        yield fault


def check_generator_engine(config: Config, known: Known) -> Iterator[str]:
    """Finds why the generator's engine cannot load it."""
    generator = generator_ahead(known)
    if generator is None or config.invert.engine != "transformers":
        return
    fault = readable(generator) and checks.transformers_fault(
        generator, "invert.model", "invert.engine"
    )
    if fault:
        yield fault


def readable(ref: ModelRef) -> bool:
    """Whether a model has no fault that `models.checks` finds; only then do others make sense."""
    return not any(checks.model_faults(ref, ""))


# --- lengths --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Limit:
    """The largest number of tokens that a text may have with its prompt."""

    tokens: int
    key: str
    """The key of the configuration that sets it."""
    most: int
    """The largest number of tokens that the model allows."""
    room: int = 0
    """Tokens that the value of the key has more than a text may have."""
    prompt: int = 0
    """Tokens of the prompt around a question."""

    def fault(self, length: int) -> str:
        """Returns why a text with so many tokens is refused."""
        return f"too long: {length} tokens with its prompt, at most {self.tokens} by {self.key}"

    def advice(self, longest: int) -> str:
        """Returns what to do if the longest text has so many tokens."""
        advice = "Shorten or remove these rows"
        if self.prompt > self.tokens // 2:
            advice = (
                f"Shorten `target.system` or `target.template`, which add {self.prompt} tokens to "
                "each question"
            )
        if longest <= self.most:
            return f"{advice}, or set {self.key}={longest + self.room}."
        return f"{advice}: the model reads at most {self.most} tokens."


def context_limit(ref: ModelRef, section: Target) -> Limit:
    """Returns the limit of the target's context, in which a text leaves room for one token."""
    tokens = refs.context_length(ref, section.max_model_len)
    most = refs.context_length(ref, None)
    prompt = _prompt_length(target_prompter(ref, section))
    return Limit(tokens - 1, "target.max_model_len", most - 1, room=1, prompt=prompt)


def training_limit(ref: ModelRef, section: FineTuning, target: Target, key: str) -> Limit:
    """Returns the limit of a stage that trains; `key` is its `max_length`."""
    prompt = _prompt_length(target_prompter(ref, target))
    return Limit(section.max_length, key, refs.context_length(ref, None) - 1, prompt=prompt)


def _prompt_length(prompter: Prompter) -> int:
    return len(prompter.encode_prompt(prompter.prompt("")))


@dataclass(frozen=True)
class LongText:
    """A text that is too long, with its place and its number of tokens."""

    place: str
    """File and line."""
    tokens: int


def counted(number: int, noun: str) -> str:
    """Returns the beginning of a sentence, such as `1 row is` or `2 rows are`."""
    return f"1 {noun} is" if number == 1 else f"{number} {noun}s are"


def long_texts(source: str, found: Sequence[LongText], limit: Limit) -> str:
    """Returns a paragraph that names texts that are too long, without their words.

    Args:
        source: the key of the configuration, or what else the texts are.
        found: the texts; at least one.
        limit: the limit that they exceed.
    """
    rows = [f"{text.place} ({text.tokens} tokens)" for text in found[:NAMED]]
    more = [f"{len(found) - NAMED} more"] if len(found) > NAMED else []
    longest = max(text.tokens for text in found)
    return (
        f"{source}: {counted(len(found), 'row')} longer with the prompt than the {limit.tokens} "
        f"tokens that {limit.key} allows: {', '.join([*rows, *more])}. {limit.advice(longest)}"
    )


def long_pairs(
    prompter: Prompter, questions: Sequence[str], answers: Sequence[str], limit: Limit
) -> dict[int, int]:
    """Returns the pairs of question and answer that are too long: their indices and tokens.

    A pair counts with its prompt and the end of the answer. Short pairs are not tokenised.
    """
    candidates = [
        index
        for index, pair in enumerate(zip(questions, answers, strict=True))
        if limit.prompt + MOST_TOKENS_PER_BYTE * len("".join(pair).encode()) >= limit.tokens
    ]
    too_long: dict[int, int] = {}
    for start in range(0, len(candidates), PIECE):
        piece = candidates[start : start + PIECE]
        pairs = prompter.encode_pairs([questions[i] for i in piece], [answers[i] for i in piece])
        lengths = [len(input_ids) for input_ids, _ in pairs]
        too_long |= {i: n for i, n in zip(piece, lengths, strict=True) if n > limit.tokens}
    return too_long
