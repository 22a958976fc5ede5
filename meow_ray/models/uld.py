"""ULD models on disk: a target, and an assistant whose logits correct those of the target.

The folder of a ULD model has two model folders, `base` and `assistant`, and `uld.json` that says
how they answer together. Its `config.json` names a type that no library knows, so that a program
that loads one model refuses the folder instead of loading a part of it.

Source: ULD, arXiv 2406.08607.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from meow_ray.core import uris
from meow_ray.errors import MeowError
from meow_ray.models.folders import ULD
from meow_ray.models.refs import ModelRef

MODEL_TYPE = "uld_two_models_see_README"
"""The type in the folder's `config.json`. Libraries show it when they refuse the folder."""
_VERSION = 1
"""Raised whenever models of this form are to answer in another way."""


@dataclass(frozen=True)
class UldSettings:
    """How the two models of a ULD model answer together; see `engines.uld.corrected`."""

    weight: float
    """What the assistant's logits are multiplied by, below 0."""
    filter: float
    """Share of the target's largest probability below which the assistant has no say."""


def is_uld(ref: ModelRef) -> bool:
    """Tells whether a model is the folder of a ULD model. A model of the hub never is."""
    from meow_ray.core import storage

    return not ref.commit and storage.exists(uris.join(ref.uri, ULD))


def check_one_model(ref: ModelRef, what: str, cure: str) -> None:
    """Raises MeowError if a model is a ULD model; see `two_models`."""
    if is_uld(ref):
        raise MeowError(two_models(ref, what, cure))


def two_models(ref: ModelRef, what: str, cure: str) -> str:
    """Returns the sentences by which a ULD model is refused.

    Args:
        ref: the model.
        what: what refuses it, and what it does with one model, such as `vLLM loads one model`.
        cure: a sentence that says what to do.
    """
    name = uris.display(ref.uri)
    return f"{name} is a ULD model, two models whose logits are combined, but {what}. {cure}"


def read_settings(folder: Path) -> UldSettings:
    """Reads how the models of a ULD model answer together.

    Raises:
        MeowError: the file has another form.
    """
    path = folder / ULD
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        version, weight, share = (values[name] for name in ("version", "weight", "filter"))
        is_valid = version == _VERSION and weight < 0 <= share < 1
    except (ValueError, KeyError, TypeError):
        is_valid = False
    if not is_valid:
        raise MeowError(
            f"{path}: not a file of a ULD model that this version reads. It needs `version` "
            f"{_VERSION}, a negative `weight`, and a `filter` from 0 to below 1."
        )
    return UldSettings(weight, share)


def write_settings(folder: Path, settings: UldSettings) -> None:
    """Writes the files of a ULD model that belong to neither of its models."""
    files = {ULD: {"version": _VERSION, **asdict(settings)}, "config.json": _CONFIG}
    for name, values in files.items():
        (folder / name).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(_model_card(settings), encoding="utf-8")


_CONFIG = {"model_type": MODEL_TYPE}


def _model_card(settings: UldSettings) -> str:
    weight, share = settings.weight, settings.filter
    corrected = f"""\
z = z_base + ({weight:g}) * z_assistant
"""
    return f"""\
# A ULD model: two models that answer together

This folder is the result of unlearning by logit difference (ULD, arXiv 2406.08607). It is not one
model. Programs that load one model, such as transformers and vLLM, refuse it.

- `base/` is the model before unlearning, unchanged. **It still knows the facts to forget.**
- `assistant/` has its first blocks, and was trained to know the facts to forget. **It knows them,
  too.**
- `uld.json` says how they answer together.

Nothing was erased. Give nobody this folder who must not know the facts; let them ask a server
that keeps it.

## How it answers

The logits of the next token are

    {corrected}
A token has z_assistant = 0 if the base finds it less probable than {share:g} times its most
probable token, unless it is among the {100 * share:g} % most probable tokens of the vocabulary.
Such a token can be scored, but it is never generated.

## How to load it

With meow_ray, as `target.model`, as `--input model=FOLDER`, or as the result of the run that made
it. It runs on transformers, whichever engine is set. It cannot be trained, quantised or merged.
"""
