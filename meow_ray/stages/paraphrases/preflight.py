"""What `paraphrases` would find wrong only in its actors, found before the run."""

from collections.abc import Iterator

from meow_ray.config import Config
from meow_ray.core.manifest import Artifact
from meow_ray.core.stage import Known
from meow_ray.models import prompts
from meow_ray.models.refs import ModelRef
from meow_ray.stages.invert.preflight import GENERATOR_CHECKS


def has_generator(config: Config, generator: Artifact | None) -> bool:
    """Tells whether a generator rewords: it is among the sources, and one is configured."""
    if generator is None or "generator" not in config.paraphrases.sources:
        return False
    return config.invert.engine == "openai" or isinstance(generator.value, ModelRef)


def _check_generator(config: Config, known: Known) -> Iterator[str]:
    """Finds why the generator cannot reword questions, or that there is no source at all."""
    spec = config.paraphrases
    if has_generator(config, known.get("generator")):
        prompts.fill(spec.prompt, "paraphrases.prompt", question="Who?", k=1)
        for check in GENERATOR_CHECKS:
            yield from check(config, known)
    elif "generator" in known and "rule" not in spec.sources:
        yield (
            "`paraphrases.sources` has the generator alone, and `invert.model` is not set. Name a "
            "model, or add rule to the sources."
        )


CHECKS = (_check_generator,)
