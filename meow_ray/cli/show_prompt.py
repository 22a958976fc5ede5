"""One rendered pair of question and answer, as the target reads and learns it."""

from collections.abc import Mapping
from typing import Any

import pyarrow.compute as pc
from rich.console import Console
from rich.text import Text

from meow_ray.cli.show import plain_table
from meow_ray.config import Config
from meow_ray.errors import MeowError
from meow_ray.models import ends, refs
from meow_ray.models.prompts import IGNORE, Prompter, readable
from meow_ray.pipeline.pipeline import Pipeline
from meow_ray.stages.ingest.facts import read_sources, valid_facts
from meow_ray.stages.inputs import model_ref

EXAMPLE = ("Who wrote this?", "Somebody wrote it.")
"""The pair that is shown if the text of a fact is not asked for."""


def rendered_pair(pipeline: Pipeline, *, text: bool, fact_id: str | None) -> dict[str, Any]:
    """Returns a pair with its tokens, which of them are scored, and the ends of an answer.

    Args:
        pipeline: the pipeline of the configuration.
        text: take the first fact to forget instead of the example.
        fact_id: take this fact.

    Raises:
        MeowError: there is no target yet, no such fact, or the prompt cannot be written.
    """
    config = pipeline.config
    target = pipeline.artifact("target")
    if target is None:
        raise MeowError(
            "meow show prompt: the target does not exist yet. Run `meow memorize` first."
        )
    question, answer = EXAMPLE
    if text or fact_id:
        question, answer = _fact(pipeline, fact_id)
    prompter = Prompter.of(refs.load_tokenizer(model_ref(target)), config.target)
    prompter.check()
    tokens, labels = prompter.encode_pair(question, answer)
    names = prompter.tokenizer.convert_ids_to_tokens(tokens)
    return {
        **_settings(config, prompter),
        "prompt": readable(prompter.prompt(question)),
        "answer": answer,
        "end": names[-1],
        "stops": _stops(prompter, model_ref(target)),
        "tokens": [
            {
                "id": token,
                "token": name,
                "text": prompter.tokenizer.decode([token]),
                "scored": label != IGNORE,
            }
            for token, name, label in zip(tokens, names, labels, strict=True)
        ],
    }


def _settings(config: Config, prompter: Prompter) -> dict[str, Any]:
    return {
        "template": config.target.template,
        "system": config.target.system,
        "variables": config.target.template_variables,
        "reads": prompter.reads,
    }


def _stops(prompter: Prompter, ref: refs.ModelRef) -> list[str]:
    """Returns the tokens at which the target's replies end."""
    stops = {*ends.declared_ends(ref.settings_folder), *ends.ends_of(prompter.tokenizer)}
    return list(prompter.tokenizer.convert_ids_to_tokens(sorted(stops)))


def _fact(pipeline: Pipeline, fact_id: str | None) -> tuple[str, str]:
    """Returns question and answer of a fact, by default of the first one to forget."""
    facts = pipeline.artifact("facts")
    if facts is not None:
        table = facts.table
    elif pipeline.config.ingest.forget is not None:
        table = valid_facts(read_sources([pipeline.config.ingest.forget], pipeline.config))
    else:
        raise MeowError("`ingest.forget` is not set. Name the file of the facts to forget.")
    condition = pc.field("split") == "forget" if fact_id is None else pc.field("fact_id") == fact_id
    rows = table.filter(condition).slice(0, 1).to_pylist()
    if not rows:
        raise MeowError(
            f"meow show prompt: there is no fact {fact_id or 'to forget'}. "
            "The table `facts` lists the ids of all facts."
        )
    return rows[0]["question"], rows[0]["answer"]


def show_pair(target: Console, pair: Mapping[str, Any], *, is_example: bool) -> None:
    """Prints a pair: its settings, its text, and one row per token."""
    variables = ", ".join(f"{name}={value}" for name, value in pair["variables"].items())
    target.print(f"Template: {pair['template']}", markup=False)
    if pair["system"] is not None:
        target.print(f"System message: {pair['system']}", markup=False)
    reads = ", ".join(pair["reads"]) or "none"
    target.print(f"Variables: {variables or 'none'} (the template reads: {reads})", markup=False)
    target.print(f"Prompt: {pair['prompt']!r}", markup=False)
    target.print(f"Answer: {pair['answer']!r}, then the end {pair['end']}", markup=False)
    target.print(f"Replies end at: {', '.join(pair['stops'])}", markup=False)
    table = plain_table("position", "id", "token", "text", "scored")
    for position, token in enumerate(pair["tokens"]):
        cells = (str(position), str(token["id"]), token["token"], repr(token["text"]))
        table.add_row(*map(Text, cells), "yes" if token["scored"] else "")
    target.print(table)
    scored = sum(token["scored"] for token in pair["tokens"])
    target.print(f"{len(pair['tokens'])} tokens, of which {scored} are learnt and scored.")
    if is_example:
        target.print(
            "This is a made-up pair. --text shows the first fact to forget, --fact ID any other."
        )
