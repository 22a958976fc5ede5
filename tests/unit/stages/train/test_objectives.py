import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from meow_ray.config import Train
from meow_ray.errors import MeowError
from meow_ray.pipeline.pipeline import load_config
from meow_ray.stages.train.losses import Sequences
from meow_ray.stages.train.objectives import PRESETS, ROLES, ObjectiveSpec, resolve, source_of

OWN = """
import math

from meow_ray.losses import Sequences, uses


def shifted(values, by):
    return values + by


@uses("log_probs")
def mine(idk: Sequences, forget: Sequences, *, beta: float = 0.5, first: int = 1):
    return shifted(beta * forget.token_mean(forget.log_probs), first) + 0 * idk.num_sequences


def plain(forget):
    return forget.log_probs.sum()


@uses("model")
def whole(retain, *, layer=3):
    return retain.hidden.sum()


number = math.pi
"""


def preset(name: str, **more: Any) -> ObjectiveSpec:
    return resolve(Train(objective=name, **more), None)


def own(path: Path, text: str = OWN, function: str = "mine", **more: Any) -> ObjectiveSpec:
    """Resolves an objective from a file with this text."""
    file = path / "mine.py"
    file.write_text(text)
    name = f"{file}:{function}"
    return resolve(Train(objective=name, **more), source_of(name))


# --- presets ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PRESETS)
def test_a_name_stands_for_its_preset(name: str):
    assert source_of(name) is None
    refusals = Train().idk_answers if "idk" in PRESETS[name].reads else ()
    assert preset(name) == replace(PRESETS[name], idk_answers=refusals)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_a_function_that_there_is_over_roles_that_there_are(name: str):
    spec = PRESETS[name]
    assert spec.load().__name__ == spec.function
    assert spec.reads
    assert set(spec.reads) <= set(ROLES)


@pytest.mark.parametrize("field", ["forget_weight", "retain_weight", "kl_weight"])
@pytest.mark.parametrize("value", [0.0, 0.25])
@pytest.mark.parametrize("name", ["meow", "meow_gd", "npo_kl"])
def test_a_weight_takes_the_place_of_the_presets(name: str, field: str, value: float):
    found = preset(name, **{field: value})
    for other in ("forget_weight", "retain_weight", "kl_weight"):
        assert getattr(found, other) == (value if other == field else getattr(PRESETS[name], other))


def test_settings_and_trainable_parameters_take_the_place_of_the_presets_one_by_one():
    found = preset("rmu", settings={"steering": 6.5, "layer": 3}, trainable=r".*\.mlp\..*")
    assert found.settings == {"layer": 3, "steering": 6.5, "alpha": 100.0}
    assert found.trainable == r".*\.mlp\..*"
    assert found.layer == 3
    assert PRESETS["rmu"].settings == {"layer": 7, "steering": 20.0, "alpha": 100.0}


def test_a_whole_number_does_for_a_setting_that_is_none():
    assert preset("npo", settings={"beta": 1}).settings == {"beta": 1}


@pytest.mark.parametrize(
    ("name", "setting", "known"),
    [
        ("npo", "gamma", "beta"),
        ("simnpo", "delta", "beta, gamma"),
        ("rmu", "beta", "layer, steering, alpha"),
        ("meow", "beta", "none"),
    ],
)
def test_an_unknown_setting_is_refused_with_those_that_there_are(
    name: str, setting: str, known: str
):
    with pytest.raises(MeowError) as refused:
        preset(name, settings={setting: 1.0})
    assert (
        str(refused.value)
        == f"`train.settings.{setting}`: {name} has no such setting; it has {known}."
    )


@pytest.mark.parametrize(("name", "setting"), [("rmu", "layer"), ("ceu", "skip_tokens")])
def test_a_fraction_is_refused_where_a_whole_number_is_due(name: str, setting: str):
    with pytest.raises(MeowError, match=rf"`train\.settings\.{setting}`: 1\.5 is no whole number"):
        preset(name, settings={setting: 1.5})


@pytest.mark.parametrize(
    ("name", "more", "roles", "frozen"),
    [
        ("meow", {}, ("inverted",), False),
        ("meow", {"retain_weight": 0.1}, ("inverted", "retain"), False),
        ("meow", {"kl_weight": 0.1}, ("inverted", "retain"), True),
        ("meow_gd", {}, ("inverted", "retain"), False),
        ("meow_gd", {"retain_weight": 0}, ("inverted",), False),
        ("meow_kl", {}, ("inverted", "retain"), True),
        ("meow_kl", {"kl_weight": 0}, ("inverted",), False),
        ("gradient_ascent", {}, ("forget",), False),
        ("kl_min", {}, ("forget", "retain"), True),
        ("npo", {}, ("forget",), False),
        ("npo_kl", {"kl_weight": 0, "retain_weight": 1}, ("forget", "retain"), False),
        ("dpo", {}, ("idk", "forget", "retain"), False),
        ("altpo", {"retain_weight": 0}, ("inverted", "forget"), False),
        ("undial", {}, ("forget",), True),
        ("rmu", {}, ("forget", "retain"), True),
        ("rmu", {"retain_weight": 1, "kl_weight": 1}, ("forget", "retain"), True),
    ],
)
def test_weights_decide_what_is_read_and_whether_a_frozen_copy_stays(
    name: str, more: dict[str, float], roles: tuple[str, ...], frozen: bool
):
    found = preset(name, **more)
    assert found.roles == roles
    assert found.needs_frozen == frozen


@pytest.mark.parametrize("name", sorted(set(PRESETS) - {"rmu"}))
def test_activations_are_read_by_rmu_alone(name: str):
    assert PRESETS[name].layer is None


# --- one's own ----------------------------------------------------------------------------------


def test_an_own_function_is_read_off_its_parameters(tmp_path: Path):
    found = own(tmp_path)
    expected = ObjectiveSpec(
        "mine", ("idk", "forget"), "log_probs", {"beta": 0.5, "first": 1}, source=OWN
    )
    assert found == replace(expected, idk_answers=Train().idk_answers)
    assert found.roles == ("idk", "forget")
    assert not found.needs_frozen


@pytest.mark.parametrize(
    ("function", "reference", "frozen", "layer"),
    [
        ("plain", "none", False, None),
        ("mine", "log_probs", False, None),
        ("whole", "model", True, 3),
    ],
)
def test_an_own_function_says_what_it_uses_of_the_model_before_training(
    tmp_path: Path, function: str, reference: str, frozen: bool, layer: int | None
):
    found = own(tmp_path, function=function)
    assert found.reference == reference
    assert found.needs_frozen == frozen
    assert found.layer == layer


def test_an_own_function_computes_on_a_worker_that_lacks_its_file(tmp_path: Path):
    spec = own(tmp_path, settings={"beta": 2})
    (tmp_path / "mine.py").unlink()
    spec = pickle.loads(pickle.dumps(spec))
    uniform = Sequences(
        torch.zeros(3, 4), torch.tensor([0, 1, 2]), torch.tensor([0, 0, 1]), 2, 6, 4
    )
    value = spec.load()(uniform, uniform, **spec.settings)
    assert value.item() == pytest.approx(2 * -0.5 * torch.log(torch.tensor(4.0)).item() + 1)


def test_weights_and_settings_of_an_own_function_are_configured_as_a_presets(tmp_path: Path):
    found = own(tmp_path, settings={"first": 3}, forget_weight=0.5, kl_weight=0.25, trainable="mlp")
    assert found.settings == {"beta": 0.5, "first": 3}
    assert (found.forget_weight, found.retain_weight, found.kl_weight) == (0.5, 0.0, 0.25)
    assert found.trainable == "mlp"
    assert found.roles == ("idk", "forget", "retain")
    assert found.needs_frozen


def test_a_role_that_a_function_reads_is_not_read_twice(tmp_path: Path):
    assert own(tmp_path, function="whole", retain_weight=1.0).roles == ("retain",)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"gamma": 1.0},
            ["`train.settings.gamma`", "mine.py:mine", "no such setting", "beta, first"],
        ),
        ({"first": 1.5}, ["`train.settings.first`", "1.5 is no whole number"]),
    ],
)
def test_settings_of_an_own_function_are_checked(
    tmp_path: Path, settings: dict[str, float], message: list[str]
):
    with pytest.raises(MeowError) as refused:
        own(tmp_path, settings=settings)
    assert all(part in str(refused.value) for part in message)


def test_an_own_file_may_stand_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a: b.py").write_text(OWN)
    assert source_of("~/a: b.py:mine") == OWN


@pytest.mark.parametrize("place", ["", "{}/", "file://{}/"])
def test_an_own_file_that_is_missing_is_refused_with_its_whole_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MeowError) as refused:
        source_of(f"{place.format(tmp_path)}absent.py:mine")
    assert str(refused.value) == f"`train.objective`: there is no file {tmp_path}/absent.py."


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def mine(forget:\n", "SyntaxError"),
        ("\tx = 1\n", "IndentationError"),
        ("x = \0\n", "null byte"),
        ("import no_such_module\n", "no_such_module"),
        ("1 / 0\n", "ZeroDivisionError"),
        ("raise ValueError('two\\nlines')\n", "ValueError"),
        ("def other(forget): ...\n", "'mine'"),
        ("", "'mine'"),
        ("mine = 3\n", "callable"),
        ("from meow_ray.losses import uses\n@uses('model')\ndef mine(world): ...\n", "takes world"),
        ("def mine(forget, beta, world, *, gamma=1): ...\n", "takes beta, world"),
        ("def mine(*roles): ...\n", "takes roles"),
        ("def mine(forget, **settings): ...\n", "takes settings"),
        ("def mine(): ...\n", "takes nothing"),
        ("def mine(*, beta=1.0): ...\n", "takes nothing"),
    ],
)
def test_an_own_file_that_cannot_be_used_is_refused_in_one_line(
    tmp_path: Path, text: str, message: str
):
    with pytest.raises(MeowError) as refused:
        own(tmp_path, text)
    said = str(refused.value)
    assert said.startswith(f"`train.objective`: {tmp_path}/mine.py:mine ")
    assert message in said
    assert "Traceback" not in said
    assert "\n" not in said
    assert refused.value.__cause__ is None


def test_roles_that_there_are_stand_in_the_refusal(tmp_path: Path):
    with pytest.raises(MeowError, match=r"there are inverted, forget, retain, idk\."):
        own(tmp_path, "def mine(world): ...\n")


# --- configuration ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["nope", "MEOW", "", "mine.py", "mine.py:", "mine.py:1st", "mine.txt:f", ".py:f"]
)
def test_a_name_of_nothing_is_refused_with_those_that_there_are(name: str):
    valid = (
        f"no objective {name!r}; there are {', '.join(PRESETS)}, or your own as FILE.py:FUNCTION"
    )
    with pytest.raises(MeowError) as refused:
        load_config(None, [f"train.objective={name!r}"])
    assert valid in str(refused.value)
    with pytest.raises(MeowError) as refused:
        source_of(name)
    assert valid in str(refused.value)


@pytest.mark.parametrize(
    "name", [*PRESETS, "mine.py:f", "/a/b c/mine.py:_f2", "s3://bucket/mine.py:été"]
)
def test_a_preset_or_a_function_in_a_file_is_let_through(name: str):
    assert load_config(None, [f"train.objective={name}"]).train.objective == name


@pytest.mark.parametrize("field", ["forget_weight", "retain_weight", "kl_weight"])
def test_a_negative_weight_is_refused(field: str):
    with pytest.raises(ValidationError, match=field):
        Train(**{field: -0.1})
