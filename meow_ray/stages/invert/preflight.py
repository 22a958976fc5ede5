"""What `invert` would find wrong only in its actors, found before the run."""

import os
from collections.abc import Iterator

from meow_ray.config import Config
from meow_ray.core.stage import Known
from meow_ray.models.refs import ModelRef
from meow_ray.stages.invert.endpoint import EndpointSpec, endpoint_spec
from meow_ray.stages.model_checks import check_generator, check_generator_engine

TIMEOUT = 20
"""Seconds in which an endpoint must accept a connection."""
HELLO = "Reply with OK."
NO_GENERATOR = (
    "`invert.model` is not set. Name the model that writes inverted facts, or take a file of your "
    "own candidates with --input candidates=FILE."
)


def _check_generator_is_set(config: Config, known: Known) -> Iterator[str]:
    """Finds that no model is named that writes inverted facts."""
    generator = known.get("generator")
    if config.invert.engine == "openai" or generator is None:
        return
    if not isinstance(generator.value, ModelRef):
        yield NO_GENERATOR


def _check_endpoints(config: Config, known: Known) -> Iterator[str]:
    """Finds endpoints that cannot be reached, or that refuse the key or the model."""
    spec = config.invert
    resources = config.resources.invert
    if spec.engine == "openai":
        generator = endpoint_spec(
            spec.base_url, spec.model, spec.api_key_env, spec.structured, resources
        )
        yield from endpoint_faults(generator, "invert.base_url", "invert.model")
    if spec.judge == "endpoint":
        judge = endpoint_spec(
            spec.judge_base_url, spec.judge_model, spec.judge_api_key_env, True, resources
        )
        yield from endpoint_faults(judge, "invert.judge_base_url", "invert.judge_model")


def endpoint_faults(spec: EndpointSpec, url_key: str, model_key: str) -> Iterator[str]:
    """Sends one small request to an endpoint; yields what no later request could change.

    An endpoint that is slow, busy or still starting is not refused, nor is one that does not know a
    field of a request: the run itself copes with these.
    """
    import openai

    client = openai.OpenAI(
        base_url=spec.base_url,
        api_key=spec.api_key,
        timeout=TIMEOUT,
        max_retries=0,
    )
    place = f"`{url_key}`: the endpoint {spec.base_url}"
    try:
        client.chat.completions.create(
            model=spec.model, messages=[{"role": "user", "content": HELLO}]
        )
    except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
        lacks = "" if os.environ.get(spec.api_key_env) else ", which is not set"
        yield (
            f"{place} refuses the key from {spec.api_key_env}{lacks} (HTTP {error.status_code}). "
            "Set the variable to a valid key."
        )
    except openai.NotFoundError:
        yield (
            f"{place} does not know this path or the model {spec.model} (HTTP 404). Correct "
            f"`{url_key}`, which ends in /v1, or `{model_key}`."
        )
    except openai.APITimeoutError as error:
        if type(error.__cause__).__name__ == "ConnectTimeout":  # of whatever HTTP library it uses
            yield f"{place} cannot be reached within {TIMEOUT} s. Correct the address."
    except openai.APIConnectionError as error:
        reason = error.__cause__ or error
        # the run itself copes with a connection that is dropped
        if type(reason).__name__ == "ConnectError":
            yield f"{place} cannot be reached ({reason}). Start it, or correct the address."
    except (openai.OpenAIError, ValueError):  # no JSON: a proxy may answer while it starts
        return


GENERATOR_CHECKS = (check_generator, check_generator_engine, _check_endpoints)
"""For each stage that asks the generator."""

CHECKS = (*GENERATOR_CHECKS, _check_generator_is_set)
