"""A ULD model in the engine of transformers, and what refuses to load it."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from meow_ray.config import LmEval, Target
from meow_ray.engines import EngineSpec, Sampling, build
from meow_ray.engines.uld import EXCLUDED
from meow_ray.errors import MeowError
from meow_ray.models import checks, refs, uld
from meow_ray.models.folders import ULD, ULD_ASSISTANT, ULD_BASE
from meow_ray.models.refs import ModelRef, pin
from meow_ray.models.uld import UldSettings
from meow_ray.pipeline.pipeline import load_config
from meow_ray.stages.audit import loading
from meow_ray.stages.audit.reasons import MissingError
from meow_ray.stages.evaluate import lm_eval
from meow_ray.stages.inputs import engine_spec
from tests.support.uld import write_random, write_uld

SETTINGS = UldSettings(weight=-0.8, filter=0.1)
PROMPTS = ("Who?", "Where was Ann born, and when?", "Why")
NEW_TOKENS = 12
IS_ULD = "is a ULD model, two models whose logits are combined, but"


@pytest.fixture(scope="module", params=["llama", "gpt2", "gemma2"])
def folder(
    request: pytest.FixtureRequest, tiny_tokenizer: Any, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A ULD model of two random models that differ in their heads."""
    parts = tmp_path_factory.mktemp(request.param)
    base, assistant = (
        write_random(request.param, tiny_tokenizer, seed, parts / str(seed)) for seed in (1, 2)
    )
    return write_uld(base, assistant, SETTINGS, parts / "uld")


@pytest.fixture(scope="module")
def engine(folder: Path) -> Any:
    return build(EngineSpec(pin(str(folder), None, "model"), engine="transformers"))


@pytest.fixture(scope="module")
def networks(folder: Path) -> list[Any]:
    """The two models, loaded one by one."""
    from transformers import AutoModelForCausalLM

    names = (ULD_BASE, ULD_ASSISTANT)
    return [AutoModelForCausalLM.from_pretrained(folder / name).eval() for name in names]


def by_hand(networks: list[Any], tokens: list[int]) -> tuple[Any, Any]:
    """Returns logits after each position, `[position, vocab]`, and which tokens are filtered."""
    with torch.no_grad():
        z, assistant = (network(torch.tensor([tokens])).logits[0] for network in networks)
    filtered = torch.zeros_like(z, dtype=torch.bool)
    for position, row in enumerate(z.tolist()):
        most = sorted(row, reverse=True)
        least_kept = most[int(SETTINGS.filter * len(row)) - 1]
        for token, value in enumerate(row):
            is_improbable = value < most[0] + math.log(SETTINGS.filter)
            filtered[position, token] = is_improbable and value < least_kept
    return z + SETTINGS.weight * assistant.where(~filtered, 0), filtered


def greedy(networks: list[Any], prompt: list[int]) -> list[int]:
    """Returns the tokens of greedy decoding, each computed without a cache."""
    tokens = list(prompt)
    for _ in range(NEW_TOKENS):
        logits, filtered = by_hand(networks, tokens)
        tokens.append(int(logits[-1].where(~filtered[-1], EXCLUDED).argmax()))
    return tokens[len(prompt) :]


def prompts_of(engine: Any) -> list[list[int]]:
    return [engine.tokenizer(text)["input_ids"] for text in PROMPTS]


def test_greedy_replies_are_those_of_both_models_without_filtered_tokens(
    engine: Any, networks: list[Any]
):
    prompts = prompts_of(engine)
    replies = engine.generate(prompts, [Sampling(NEW_TOKENS)] * len(prompts))
    expected = [greedy(networks, prompt) for prompt in prompts]
    assert [list(reply.tokens) for (reply,) in replies] == expected
    # the assistant changes what the target says
    alone = [greedy([networks[0], networks[0]], prompt) for prompt in prompts]
    assert alone != expected


def test_teacher_forced_probabilities_are_those_of_both_models(engine: Any, networks: list[Any]):
    prompts = prompts_of(engine)
    answers = [list(range(40, 48)), [50], [60, 7, 61]]
    forced = engine.teacher_force(prompts, answers)
    for prompt, answer, result in zip(prompts, answers, forced, strict=True):
        logits, _ = by_hand(networks, [*prompt, *answer])
        predicting = logits[len(prompt) - 1 : -1].log_softmax(-1)
        expected = predicting.gather(1, torch.tensor(answer)[:, None])[:, 0]
        assert result.log_probs == pytest.approx(expected.tolist(), abs=1e-4)


def test_a_greedy_reply_is_greedy_when_it_is_teacher_forced(engine: Any, networks: list[Any]):
    prompts = prompts_of(engine)
    replies = [list(r.tokens) for (r,) in engine.generate(prompts, [Sampling(NEW_TOKENS)] * 3)]
    for prompt, reply, forced in zip(
        prompts, replies, engine.teacher_force(prompts, replies), strict=True
    ):
        logits, filtered = by_hand(networks, [*prompt, *reply])
        span = slice(len(prompt) - 1, -1)
        best_is_filtered = filtered[span].gather(1, logits[span].argmax(-1)[:, None])[:, 0]
        assert forced.is_greedy == (~best_is_filtered).tolist()


def test_samples_are_drawn_from_unfiltered_tokens_alone(engine: Any, networks: list[Any]):
    prompt = prompts_of(engine)[0]
    (replies,) = engine.generate([prompt], [Sampling(1, temperature=3.0, n=200, seed=0)])
    _, filtered = by_hand(networks, prompt)
    kept = set((~filtered[-1]).nonzero()[:, 0].tolist())
    drawn = {reply.tokens[0] for reply in replies if reply.tokens}
    assert len(drawn) > 5
    assert drawn <= kept
    assert len(kept) < len(filtered[-1]) / 2


def test_two_engines_of_one_model_do_not_share_their_state(engine: Any, folder: Path):
    other = build(EngineSpec(pin(str(folder), None, "model"), engine="transformers"))
    prompts = prompts_of(engine)
    first, second = (each.generate(prompts, [Sampling(4)] * 3) for each in (engine, other))
    assert first == second


# --- what is around the engine --------------------------------------------------------------------


@pytest.fixture(scope="module")
def ref(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> ModelRef:
    """A ULD model of a model and itself."""
    folder = tmp_path_factory.mktemp("refused") / "uld"
    return pin(str(write_uld(tiny_model, tiny_model, SETTINGS, folder)), None, "model")


def test_a_uld_model_runs_on_transformers_whichever_engine_is_set(ref: ModelRef, tiny_model: Path):
    config = load_config(None, [])
    of_uld = engine_spec(ref, Target(engine="vllm"), config.resources.evaluate)
    of_one = engine_spec(
        pin(str(tiny_model), None, "model"), Target(engine="vllm"), config.resources.evaluate
    )
    assert (of_uld.engine, of_one.engine) == ("transformers", "vllm")


def test_its_settings_are_those_of_the_target(ref: ModelRef, tiny_model: Path):
    plain = pin(str(tiny_model), None, "model")
    assert refs.context_length(ref, None) == refs.context_length(plain, None)
    assert refs.stored_dtype(ref) == "float32"
    assert refs.writes_date(ref) is False
    assert checks.model_faults(ref, "target.model") == ()


def test_transformers_names_the_type_that_it_does_not_know(ref: ModelRef):
    from transformers import AutoModelForCausalLM

    with pytest.raises(ValueError, match=uld.MODEL_TYPE):
        AutoModelForCausalLM.from_pretrained(ref.uri)


def test_vllm_is_refused(ref: ModelRef):
    with pytest.raises(MeowError) as refused:
        build(EngineSpec(ref, engine="vllm"))
    assert str(refused.value) == (
        f"{ref.uri} {IS_ULD} vLLM loads one model. Set the engine of this model to transformers."
    )


def test_training_is_refused(ref: ModelRef):
    assert checks.training_fault(ref, "target.model") == (
        f"`target.model`: {ref.uri} {IS_ULD} training changes one model. Name the model that it "
        "was made of, or its folder base/."
    )


def test_the_harness_is_refused(ref: ModelRef):
    with pytest.raises(MeowError, match="lm-evaluation-harness loads one model"):
        lm_eval.run_tasks(EngineSpec(ref), LmEval(tasks=("arc_easy",)), None, 1, 0)


def test_attacks_on_weights_say_that_there_are_two_models(ref: ModelRef):
    with pytest.raises(MissingError) as missing:
        loading.load(EngineSpec(ref))
    assert missing.value.reason == "two_models"


@pytest.mark.parametrize(
    "content",
    [
        "{}",
        "[]",
        "no json",
        '{"version": 2, "weight": -0.8, "filter": 0.01}',
        '{"version": 1, "weight": 0.8, "filter": 0.01}',
        '{"version": 1, "weight": -0.8, "filter": 1}',
        '{"version": 1, "weight": "a", "filter": 0.01}',
    ],
)
def test_a_damaged_file_is_refused_by_its_name(content: str, tmp_path: Path):
    (tmp_path / ULD).write_text(content)
    with pytest.raises(MeowError, match=rf"{ULD}: not a file of a ULD model"):
        uld.read_settings(tmp_path)


def test_settings_are_read_as_they_were_written(tmp_path: Path):
    uld.write_settings(tmp_path, replace(SETTINGS, weight=-1.25))
    assert uld.read_settings(tmp_path) == UldSettings(-1.25, SETTINGS.filter)
    card = (tmp_path / "README.md").read_text()
    assert "z = z_base + (-1.25) * z_assistant" in card
    assert "It still knows the facts to forget." in card
