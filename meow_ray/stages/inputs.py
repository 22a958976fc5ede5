"""Inputs from outside that several stages share: the target, the generator, and files."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from meow_ray.config import Config, EngineResources, Invert, Judge, Memorize, Source, Target
from meow_ray.core import hub_datasets, manifest, storage
from meow_ray.core.manifest import Artifact
from meow_ray.core.outside import OutsideInput
from meow_ray.engines import EngineSpec
from meow_ray.errors import MeowError
from meow_ray.models import refs, uld
from meow_ray.models.prompts import Prompter
from meow_ray.models.refs import ModelRef

TEMPLATE = ("target.template", "target.system", "target.template_variables")
"""The fields of the configuration that decide how a question becomes a prompt."""

THINKING = "enable_thinking"
"""The variable with which chat templates turn a model's thinking on or off."""

COLUMNS = ("ingest.question_columns", "ingest.answer_columns", "ingest.encoding")
"""The fields of the configuration that say how files of facts are read."""


# --- models ---------------------------------------------------------------------------------------


def model_ref(artifact: Artifact) -> ModelRef:
    """Returns the model of an input, which is from outside or was exported by a stage."""
    if isinstance(artifact.value, ModelRef):
        return artifact.value
    return ModelRef(artifact.uri, artifact.digest)


def target_prompter(ref: ModelRef, section: Target) -> Prompter:
    """Returns what writes and tokenises the prompts of the target."""
    return Prompter.of(refs.load_tokenizer(ref), section)


def engine_spec(
    ref: ModelRef, section: Target | Invert | Judge, resources: EngineResources
) -> EngineSpec:
    """Returns what an actor needs to load a model: the model, its engine and their settings.

    A ULD model runs on transformers, whichever engine the section names.
    """
    assert section.engine != "openai"
    return EngineSpec(
        model=replace(ref, trust_remote_code=section.trust_remote_code),
        engine="transformers" if uld.is_uld(ref) else section.engine,
        dtype=section.dtype,
        max_model_len=section.max_model_len,
        tensor_parallel_size=resources.tensor_parallel_size,
        kv_cache_gib=resources.kv_cache_gib,
        gpu_memory_utilization=resources.gpu_memory_utilization,
    )


def adopt_model(name: str, uri: str, verify: bool) -> Artifact:
    """Returns the model of `--input NAME=URI`: a folder, a .gguf file, or a hub name.

    Raises:
        MeowError: there is no such model, or it cannot be used.
    """
    ref = refs.pin(uri, None, f"--input {name}", verify=verify)
    return Artifact(name, ref.uri, ref.digest, value=ref)


def configured_model(
    name: str, key: str, section: Target | Invert | Judge | Memorize, verify: bool
) -> Artifact:
    """Returns the model that a section of the configuration names.

    Args:
        name: the name of the input.
        key: the field that names the model, such as `target.model`, for error messages.
        section: the section with the fields `model` and `revision`.
        verify: whether files are hashed again.

    Raises:
        MeowError: the field is not set, there is no such model, or it cannot be used.
    """
    if section.model is None:
        raise MeowError(f"`{key}` is not set. Name a model folder or a hub model.")
    ref = refs.pin(
        section.model,
        section.revision,
        key,
        trust_remote_code=section.trust_remote_code,
        verify=verify,
    )
    return Artifact(name, ref.uri, ref.digest, value=ref)


def _target(config: Config, verify: bool) -> Artifact:
    """Returns the model that must forget.

    If `target.model` is the storage root of another run, this is the model that the run made.
    """
    model = config.target.model
    if model and storage.exists(storage.join(storage.absolute(model), "model")):
        exported = manifest.latest(storage.absolute(model), "model")
        if exported is None:
            raise MeowError(
                f"`target.model`: the run at {model} has not finished its model. "
                "Finish that run, or name another model."
            )
        return exported
    return configured_model("target", "target.model", config.target, verify)


def _generator(config: Config, verify: bool) -> Artifact:
    """Returns the model that writes inverted facts.

    Endpoints, of the generator and of the judge, are identified by URL and model name.
    """
    spec = config.invert
    if spec.engine == "openai":
        digest = storage.json_digest([spec.base_url, spec.model])
        generator = Artifact("generator", spec.base_url or "", digest)
    elif spec.model is None:
        # not an error yet: candidates that are given with --input need no generator
        generator = Artifact("generator", "", "none")
    else:
        generator = configured_model("generator", "invert.model", spec, verify)
    if spec.judge != "endpoint":
        return generator
    with_judge = storage.json_digest([generator.digest, spec.judge_base_url, spec.judge_model])
    return replace(generator, digest=with_judge)


TARGET = OutsideInput("target", _target, adopt_model)
"""The model that must forget."""

GENERATOR = OutsideInput("generator", _generator, adopt_model)
"""The model that writes inverted facts."""


# --- prompts --------------------------------------------------------------------------------------


def target_prompt(config: Config, inputs: Mapping[str, Artifact]) -> str | None:
    """Returns the digest of a prompt of the target if the chat template writes the date."""
    target = config.target
    if target.template != "chat":
        return None
    return prompt_digest(inputs["target"], target.system, target.template_variables)


def base_prompt(config: Config, inputs: Mapping[str, Artifact]) -> str | None:
    """Returns the same for `memorize`, whose base model becomes the target."""
    return target_prompt(config, {"target": inputs["base"]})


def generator_prompt(config: Config, inputs: Mapping[str, Artifact]) -> str | None:
    """Returns the same for a generator that runs here."""
    generator = inputs["generator"]
    if not isinstance(generator.value, ModelRef):
        return None
    return prompt_digest(generator, None, config.invert.template_variables)


def prompt_digest(model: Artifact, system: str | None, variables: Mapping[str, Any]) -> str | None:
    """Returns the digest of a prompt of a model if its chat template writes the date."""
    ref = model_ref(model)
    if not refs.writes_date(ref):
        return None
    try:
        prompt = Prompter(refs.load_tokenizer(ref), "chat", system, variables).prompt("Who?")
    except MeowError:  # the stage itself refuses the template
        return None
    return storage.json_digest(prompt)


def thinking_hint(target: Artifact, section: Target) -> str | None:
    """Returns a warning if the target may think before it answers and the configuration is silent.

    The scores of answers are measured where the prompt ends. A model that thinks first makes an
    answer improbable there, even if it knows it.
    """
    ref = replace(model_ref(target), trust_remote_code=section.trust_remote_code)
    if THINKING in section.template_variables or section.template != "chat":
        return None
    if THINKING not in target_prompter(ref, section).reads:
        return None
    return (
        f"the target's chat template reads `{THINKING}`, which is not set, so a model that thinks "
        "is measured where its thoughts would stand. Set "
        f"target.template_variables.{THINKING}=false if it is used without."
    )


# --- files ----------------------------------------------------------------------------------------


def optional_path(name: str, key: str, path: str | None, verify: bool) -> Artifact:
    """Returns the file or folder that a field of the configuration names.

    Args:
        name: the name of the input.
        key: the field, for error messages.
        path: the value of the field; None gives an artifact whose URI is empty.
        verify: whether files are hashed again.

    Raises:
        MeowError: there is no such file or folder.
    """
    if path is None:
        return Artifact(name, "", "none")
    uri = storage.absolute(path)
    if not storage.exists(uri):
        raise MeowError(
            f"`{key}`: there is no such file or folder ({storage.display(uri)}). Correct the path."
        )
    return Artifact(name, uri, storage.content_digest(uri, verify=verify))


def data_sources(name: str, sources: Mapping[str, Source | None], verify: bool) -> Artifact:
    """Returns files or datasets of questions and answers as one input, identified by their content.

    Args:
        name: the name of the input.
        sources: the files or datasets by label, such as `forget`; those that are None are left out
            of the digest.
        verify: whether files are hashed again.

    Raises:
        MeowError: there is no such file, or no such dataset can be reached.
    """
    pinned = {label: source and pin(source) for label, source in sources.items()}
    digests = {
        label: _source_digest(source, verify)
        for label, source in pinned.items()
        if source is not None
    }
    return Artifact(name, "", storage.json_digest(digests), value=pinned)


def pin(source: Source) -> Source:
    """Returns a source whose revision is a commit if it is a hub dataset.

    Raises:
        MeowError: there is no such file, or no such dataset.
    """
    if is_stored(source):
        return source
    return source.model_copy(update={"revision": hub_datasets.commit_of(source)})


def is_stored(source: Source) -> bool:
    """Tells whether a source is a file or a folder, and not the name of a hub dataset.

    Raises:
        MeowError: there is no such file or folder, and its path cannot be the name of a dataset.
    """
    where = storage.display(source.path)
    if source.path.startswith(("http://", "https://", "hf://")):
        raise MeowError(
            f"{where}: web addresses are not read. Download the file, or write a hub dataset as "
            "owner/name."
        )
    if storage.exists(storage.absolute(source.path)):
        return True
    if not source.can_be_hub_name:
        raise MeowError(f"{where}: there is no such file or folder. Correct the path.")
    return False


def _source_digest(source: Source, verify: bool) -> list[str | None]:
    """Returns what identifies a file by its content, or a dataset by its commit."""
    if is_stored(source):
        content = storage.content_digest(storage.absolute(source.path), verify=verify)
    else:
        content = f"{source.path}@{source.revision}"
    return [content, source.subset, source.split]
