"""How fast an engine reads given answers and generates, on a model with random weights."""

import time
from collections.abc import Iterator

from benchmarks.gpu_checks import flops, models
from benchmarks.gpu_checks.models import TINY, Shape
from benchmarks.gpu_checks.parity import load_engine
from benchmarks.gpu_checks.values import Measurement, Setting
from meow_ray.engines import Sampling

BYTES_PER_WEIGHT = 2


def rates(engine: str, shape: Shape, setting: Setting) -> Iterator[Measurement]:
    """Measures an engine in bfloat16; the model is `TINY` in the reduced form.

    - `teacher_force`, tokens/s: 256 pairs of 256 + 256 random tokens (reduced: 4 of 8 + 8). Its
      share is the rate of the operations that the model needs, 2·N per token and attention
      (`flops`), of the bf16 matrix rate.
    - `generate`, tokens/s: 256 prompts of 128 tokens, 128 new ones each (reduced: 4 of 8, 8).
    - `generate, tokens of one sequence`, tokens/s: one prompt alone. Each step reads all weights,
      so its share is 2 bytes per weight times steps per second, of the memory bandwidth.
    """
    shape = TINY if setting.reduced else shape
    count, length, new_tokens = (4, 8, 8) if setting.reduced else (256, 256, 128)
    ref = models.saved(setting, shape, "bfloat16")
    loaded = load_engine(ref, engine, "bfloat16")
    sizes = flops.sizes_of(models.build(shape, "meta", "bfloat16"))
    prompts = models.random_tokens(count, 2 * length, shape.vocab)
    heads = [tokens[:length] for tokens in prompts]
    answers = [tokens[length:] for tokens in prompts]
    loaded.teacher_force(heads[:2], answers[:2])

    began = time.perf_counter()
    loaded.teacher_force(heads, answers)
    seconds = time.perf_counter() - began
    work = flops.forward_flops(sizes, [2 * length] * count, models.total(answers))
    share = None
    if setting.limits:
        share = work / seconds / setting.limits.flops
    rate = models.total(prompts) / seconds
    yield Measurement("teacher_force", rate, "tokens/s", share, "of the matrix rate")

    short = [tokens[: length // 2 + 1] for tokens in prompts]
    for name, some in (("generate", short), ("generate, one sequence", short[:1])):
        loaded.generate(some[:1], [Sampling(2)])
        before = loaded.generated
        began = time.perf_counter()
        loaded.generate(some, [Sampling(new_tokens)] * len(some))
        rate = (loaded.generated - before) / (time.perf_counter() - began)
        if len(some) == 1 and setting.limits:
            share = BYTES_PER_WEIGHT * sizes.parameters * rate / setting.limits.bandwidth
            yield Measurement(name, rate, "tokens/s", share, "of the bandwidth")
        else:
            yield Measurement(name, rate, "tokens/s")
