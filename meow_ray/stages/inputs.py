"""Inputs from outside that several stages share, and how stages turn inputs into what their code works with."""

from collections.abc import Mapping
from dataclasses import replace

from meow_ray.config import Config, EngineResources, Invert, Memorize, Source, Target
from meow_ray.core import manifest, storage
from meow_ray.core.manifest import Artifact
from meow_ray.core.outside import OutsideInput
from meow_ray.engines import EngineSpec
from meow_ray.errors import MeowError
from meow_ray.models import refs
from meow_ray.models.refs import ModelRef

TEMPLATE = ("target.template", "target.system")
"""Fields of the configuration that decide how a question becomes a prompt."""

COLUMNS = ("ingest.question_columns", "ingest.answer_columns")
"""Fields of the configuration that decide which columns of a file are read."""


# --- models -------------------------------------------------------------------------------------


def model_ref(artifact: Artifact) -> ModelRef:
    """Returns the model that an input is: one from outside, or the folder that a stage exported."""
    if isinstance(artifact.value, ModelRef):
        return artifact.value
    return ModelRef(artifact.uri, artifact.digest)


def engine_spec(ref: ModelRef, section: Target | Invert, resources: EngineResources) -> EngineSpec:
    """Says how a stage's actors load a model."""
    assert section.engine != "openai"
    return EngineSpec(
        model=replace(ref, trust_remote_code=section.trust_remote_code),
        engine=section.engine,
        dtype=section.dtype,
        max_model_len=section.max_model_len,
        tensor_parallel_size=resources.tensor_parallel_size,
        kv_cache_gib=resources.kv_cache_gib,
        gpu_memory_utilization=resources.gpu_memory_utilization,
    )


def adopt_model(name: str, place: str, verify: bool) -> Artifact:
    """Takes a model from `--input NAME=PLACE`: a folder, a .gguf file, or a hub name.

    Raises:
        MeowError: there is no such model, or it cannot be used.
    """
    ref = refs.pin(place, None, f"--input {name}", verify=verify)
    return Artifact(name, ref.uri, ref.digest, value=ref)


def configured_model(
    name: str, key: str, section: Target | Invert | Memorize, verify: bool
) -> Artifact:
    """Returns the model that a section of the configuration names under `key`.

    Raises:
        MeowError: none is named, there is no such model, or it cannot be used.
    """
    if section.model is None:
        raise MeowError(f"`{key}` is not set: name a model folder or a hub model.")
    ref = refs.pin(
        section.model,
        section.revision,
        key,
        trust_remote_code=section.trust_remote_code,
        verify=verify,
    )
    return Artifact(name, ref.uri, ref.digest, value=ref)


def _target(config: Config, verify: bool) -> Artifact:
    """Returns the model that must forget; another run's storage root means the model that this run made."""
    place = config.target.model
    if place and storage.exists(storage.join(storage.absolute(place), "model")):
        exported = manifest.latest(storage.absolute(place), "model")
        if exported is None:
            raise MeowError(f"`target.model`: the run at {place} has not finished its model.")
        return exported
    return configured_model("target", "target.model", config.target, verify)


def _generator(config: Config, verify: bool) -> Artifact:
    """Returns the model that writes inverted facts; an endpoint is known by its URL and model name alone."""
    spec = config.invert
    if spec.engine == "openai":
        generator = Artifact(
            "generator", spec.base_url or "", storage.json_digest([spec.base_url, spec.model])
        )
    elif (
        spec.model is None
    ):  # the candidates may be given with --input; `invert` itself asks for a model
        generator = Artifact("generator", "", "none")
    else:
        generator = configured_model("generator", "invert.model", spec, verify)
    if spec.judge != "endpoint":
        return generator
    digest = storage.json_digest([generator.digest, spec.judge_base_url, spec.judge_model])
    return replace(generator, digest=digest)


TARGET = OutsideInput("target", _target, adopt_model)
GENERATOR = OutsideInput("generator", _generator, adopt_model)


# --- files --------------------------------------------------------------------------------------


def optional_path(name: str, key: str, path: str | None, verify: bool) -> Artifact:
    """Returns the file or folder that the configuration names under `key`; without a URI if it names none.

    Raises:
        MeowError: there is no such file or folder.
    """
    if path is None:
        return Artifact(name, "", "none")
    uri = storage.absolute(path)
    if not storage.exists(uri):
        raise MeowError(f"`{key}`: there is no {storage.display(uri)}.")
    return Artifact(name, uri, storage.content_digest(uri, verify=verify))


def data_sources(name: str, sources: Mapping[str, Source | None], verify: bool) -> Artifact:
    """Returns files of questions and answers as one input, known by their content; `sources` are by label."""
    digests = {
        label: _source_digest(source, verify)
        for label, source in sources.items()
        if source is not None
    }
    return Artifact(name, "", storage.json_digest(digests), value=dict(sources))


def _source_digest(source: Source, verify: bool) -> list[str | None]:
    if source.is_file or storage.exists(source.path):
        content = storage.content_digest(storage.absolute(source.path), verify=verify)
    else:
        content = f"{source.path}@{_dataset_commit(source)}"
    return [content, source.subset, source.split]


def _dataset_commit(source: Source) -> str:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return str(HfApi().dataset_info(source.path, revision=source.revision).sha)
    except (HfHubHTTPError, OSError, ValueError):
        raise MeowError(
            f"{source.path}: there is no such file, and no Hugging Face dataset of that name can be reached."
        ) from None
