"""Presets, objectives of a user's file, and the settings of both."""

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
from meow_ray.stages.train.objective_spec import ROLES, ObjectiveSpec
from meow_ray.stages.train.objectives import REGISTERED, resolve, source_of
from meow_ray.stages.train.presets import PRESETS

FILE_TEXT = """
import math

from meow_ray import uses
from meow_ray.stages.train.losses import Sequences


def shifted(values, by):
    return values + by


@uses("log_probs")
def mine(idk: Sequences, forget: Sequences, *, beta: float = 0.5, first: int = 1):
    return shifted(beta * forget.token_mean(forget.log_probs), first) + 0 * idk.num_sequences


def plain(forget):
    return forget.log_probs.sum()


@uses("model")
def whole(forget, retain, *, layer=3):
    return forget.hidden.sum() + retain.hidden.sum()


number = math.pi
"""


def preset(name: str, **fields: Any) -> ObjectiveSpec:
    return resolve(Train(objective=name, **fields), None)


def from_file(
    folder: Path, text: str = FILE_TEXT, function: str = "mine", **fields: Any
) -> ObjectiveSpec:
    """Returns the objective of a function in a file with this text."""
    file = folder / "mine.py"
    file.write_text(text)
    name = f"{file}:{function}"
    return resolve(Train(objective=name, **fields), source_of(name))


# --- presets ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PRESETS)
def test_a_name_of_a_preset_gives_this_preset(name: str):
    assert source_of(name) is None
    refusals = Train().idk_answers if "idk" in PRESETS[name].reads else ()
    assert preset(name) == replace(PRESETS[name], idk_answers=refusals)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_has_an_existing_function_and_existing_roles(name: str):
    spec = PRESETS[name]
    assert spec.load().__name__ == spec.function
    assert spec.reads
    assert set(spec.reads) <= set(ROLES)


@pytest.mark.parametrize("field", ["forget_weight", "retain_weight", "kl_weight"])
@pytest.mark.parametrize("value", [0.0, 0.25])
@pytest.mark.parametrize("name", ["meow", "meow_gd", "npo_kl"])
def test_a_weight_replaces_that_of_the_preset(name: str, field: str, value: float):
    spec = preset(name, **{field: value})
    for other in ("forget_weight", "retain_weight", "kl_weight"):
        assert getattr(spec, other) == (value if other == field else getattr(PRESETS[name], other))


def test_settings_and_trainable_parameters_replace_those_of_the_preset_one_by_one():
    spec = preset("rmu", settings={"steering": 6.5, "layer": 3}, trainable=r".*\.mlp\..*")
    assert spec.settings == {"layer": 3, "steering": 6.5, "alpha": 100.0}
    assert spec.trainable == r".*\.mlp\..*"
    assert spec.layer == 3
    assert PRESETS["rmu"].settings == {"layer": 7, "steering": 20.0, "alpha": 100.0}


def test_a_setting_with_a_fraction_accepts_a_whole_number():
    assert preset("npo", settings={"beta": 1}).settings == {"beta": 1}


@pytest.mark.parametrize(
    ("name", "setting", "advice"),
    [
        ("npo", "gamma", "Choose from beta."),
        ("simnpo", "delta", "Choose from beta, gamma."),
        ("rmu", "beta", "Choose from layer, steering, alpha."),
        ("meow", "beta", "Remove it: there are no settings."),
    ],
)
def test_an_unknown_setting_is_refused_with_the_known_ones(name: str, setting: str, advice: str):
    with pytest.raises(MeowError) as refused:
        preset(name, settings={setting: 1.0})
    assert str(refused.value) == f"`train.settings.{setting}`: {name} has no such setting. {advice}"


@pytest.mark.parametrize(
    ("field", "value", "name"),
    [
        ("epochs", 3, "meow_floor"),
        ("max_steps", 9, "meow"),
        ("stop_level", 0.1, "meow"),
        ("cooldown", 0.5, "meow"),
    ],
)
def test_a_setting_of_the_other_end_of_training_is_refused(field: str, value: float, name: str):
    with pytest.raises(MeowError, match=rf"`train\.{field}` has no effect while training ends"):
        preset(name, **{field: value})
    other_end = {"meow_floor": "epochs", "meow": "never_seen"}[name]
    assert preset(name, **{field: value}, until=other_end).until == other_end


@pytest.mark.parametrize(("name", "setting"), [("rmu", "layer"), ("ceu", "skip_tokens")])
def test_a_fraction_is_refused_for_a_setting_that_counts(name: str, setting: str):
    with pytest.raises(MeowError) as refused:
        preset(name, settings={setting: 1.5})
    assert str(refused.value) == f"`train.settings.{setting}` must be a whole number (got 1.5)."


@pytest.mark.parametrize("value", [0, 0.0, -0.5])
def test_a_beta_that_is_not_positive_is_refused(value: float):
    with pytest.raises(MeowError) as refused:
        preset("npo", settings={"beta": value})
    assert str(refused.value) == f"`train.settings.beta` must be greater than 0 (got {value})."


@pytest.mark.parametrize(
    ("name", "setting"), [("simnpo", "gamma"), ("rmu", "alpha"), ("ceu", "skip_tokens")]
)
def test_other_settings_may_be_0_but_not_negative(name: str, setting: str):
    assert preset(name, settings={setting: 0}).settings[setting] == 0
    with pytest.raises(MeowError) as refused:
        preset(name, settings={setting: -1})
    assert str(refused.value) == f"`train.settings.{setting}` must not be negative (got -1)."


def test_a_users_function_decides_itself_about_the_range_of_its_settings(tmp_path: Path):
    assert from_file(tmp_path, settings={"beta": -1.0}).settings["beta"] == -1.0


@pytest.mark.parametrize(
    ("name", "weights", "roles", "frozen"),
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
def test_weights_decide_which_roles_are_read_and_whether_a_frozen_copy_is_needed(
    name: str, weights: dict[str, float], roles: tuple[str, ...], frozen: bool
):
    spec = preset(name, **weights)
    assert spec.roles == roles
    assert spec.needs_frozen == frozen


@pytest.mark.parametrize("name", sorted(set(PRESETS) - {"rmu"}))
def test_only_rmu_reads_activations(name: str):
    assert PRESETS[name].layer is None


# --- functions of a user's file -----------------------------------------------------------------


def test_roles_and_settings_are_the_parameters_of_the_function(tmp_path: Path):
    spec = from_file(tmp_path)
    assert spec == ObjectiveSpec(
        function="mine",
        reads=("idk", "forget"),
        reference="log_probs",
        settings={"beta": 0.5, "first": 1},
        source=FILE_TEXT,
        idk_answers=Train().idk_answers,
    )
    assert spec.roles == ("idk", "forget")
    assert not spec.needs_frozen


@pytest.mark.parametrize(
    ("function", "reference", "frozen", "layer"),
    [
        ("plain", "none", False, None),
        ("mine", "log_probs", False, None),
        ("whole", "model", True, 3),
    ],
)
def test_uses_declares_the_reference_of_a_function(
    tmp_path: Path, function: str, reference: str, frozen: bool, layer: int | None
):
    spec = from_file(tmp_path, function=function)
    assert spec.reference == reference
    assert spec.needs_frozen == frozen
    assert spec.layer == layer


def test_a_function_runs_on_a_worker_that_lacks_its_file(tmp_path: Path):
    spec = from_file(tmp_path, settings={"beta": 2})
    (tmp_path / "mine.py").unlink()
    spec = pickle.loads(pickle.dumps(spec))
    uniform = Sequences(
        logits=torch.zeros(3, 4),
        labels=torch.tensor([0, 1, 2]),
        owner=torch.tensor([0, 0, 1]),
        num_sequences=2,
        total_tokens=6,
        total_sequences=4,
    )
    value = spec.load()(uniform, uniform, **spec.settings)
    assert value.item() == pytest.approx(2 * -0.5 * torch.log(torch.tensor(4.0)).item() + 1)


def test_weights_and_settings_of_a_function_are_configured_like_those_of_a_preset(tmp_path: Path):
    weights = {"forget_weight": 0.5, "kl_weight": 0.25}
    spec = from_file(tmp_path, settings={"first": 3}, trainable="mlp", **weights)
    assert spec.settings == {"beta": 0.5, "first": 3}
    assert (spec.forget_weight, spec.retain_weight, spec.kl_weight) == (0.5, 0.0, 0.25)
    assert spec.trainable == "mlp"
    assert spec.roles == ("idk", "forget", "retain")
    assert spec.needs_frozen


def test_a_role_that_a_function_reads_is_not_read_twice(tmp_path: Path):
    spec = from_file(tmp_path, function="whole", retain_weight=1.0)
    assert spec.roles == ("forget", "retain")


def test_an_objective_that_reads_only_retain_is_refused(tmp_path: Path):
    with pytest.raises(MeowError) as refused:
        from_file(tmp_path, "def mine(retain): ...\n")
    assert str(refused.value) == (
        f"`train.objective`: {tmp_path}/mine.py:mine reads only retain, so it forgets nothing. "
        "Add a role: inverted, forget or idk."
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"gamma": 1.0},
            "`train.settings.gamma`: {}/mine.py:mine has no such setting. Choose from beta, first.",
        ),
        ({"first": 1.5}, "`train.settings.first` must be a whole number (got 1.5)."),
    ],
)
def test_settings_of_a_function_are_checked(
    tmp_path: Path, settings: dict[str, float], message: str
):
    with pytest.raises(MeowError) as refused:
        from_file(tmp_path, settings=settings)
    assert str(refused.value) == message.format(tmp_path)


def test_a_path_may_begin_with_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a: b.py").write_text(FILE_TEXT)
    assert source_of("~/a: b.py:mine") == FILE_TEXT


@pytest.mark.parametrize("folder", ["", "{}/", "file://{}/"])
def test_a_missing_file_is_refused_with_its_whole_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MeowError) as refused:
        source_of(f"{folder.format(tmp_path)}absent.py:mine")
    assert str(refused.value) == (
        f"`train.objective`: there is no file {tmp_path}/absent.py. Correct the path."
    )


def test_a_file_that_is_not_utf_8_is_refused(tmp_path: Path):
    (tmp_path / "mine.py").write_bytes(b"# caf\xe9\n")
    with pytest.raises(MeowError) as refused:
        source_of(f"{tmp_path}/mine.py:mine")
    assert str(refused.value) == (
        f"`train.objective`: {tmp_path}/mine.py is not UTF-8 text. Save it in this encoding."
    )


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
        (
            "from meow_ray import uses\n@uses('model')\ndef mine(world): ...\n",
            "not roles (world)",
        ),
        ("def mine(forget, beta, world, *, gamma=1): ...\n", "not roles (beta, world)"),
        ("def mine(*roles): ...\n", "not roles (roles)"),
        ("def mine(forget, **settings): ...\n", "not roles (settings)"),
        ("def mine(): ...\n", "has no positional parameters"),
        ("def mine(*, beta=1.0): ...\n", "has no positional parameters"),
        ("def mine(forget, *, beta='x'): ...\n", "the default of beta in"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_in_one_line(tmp_path: Path, text: str, message: str):
    with pytest.raises(MeowError) as refused:
        from_file(tmp_path, text)
    refusal = str(refused.value)
    assert refusal.startswith("`train.objective`: ")
    assert f"{tmp_path}/mine.py:mine " in refusal
    assert message in refusal
    assert "Traceback" not in refusal
    assert "\n" not in refusal
    assert refused.value.__cause__ is None


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ("world", "has parameters before `*` that are not roles (world). Choose from"),
        ("", "has no positional parameters. Name the roles that it reads:"),
    ],
)
def test_a_refusal_lists_the_roles(tmp_path: Path, parameters: str, message: str):
    with pytest.raises(MeowError) as refused:
        from_file(tmp_path, f"def mine({parameters}): ...\n")
    assert str(refused.value) == (
        f"`train.objective`: {tmp_path}/mine.py:mine {message} inverted, forget, retain, idk."
    )


# --- configuration ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["nope", "MEOW", "", "mine.py", "mine.py:", "mine.py:1st", "mine.txt:f", ".py:f"]
)
def test_an_unknown_name_is_refused_with_the_known_ones(monkeypatch: pytest.MonkeyPatch, name: str):
    monkeypatch.setitem(REGISTERED, "soft_ascent", "")
    known = ", ".join([*PRESETS, "soft_ascent"])
    message = f"no objective {name!r}. Choose from {known}, or use FILE.py:FUNCTION"
    with pytest.raises(MeowError) as refused:
        load_config(None, [f"train.objective={name!r}"])
    assert message in str(refused.value)
    with pytest.raises(MeowError) as refused:
        source_of(name)
    assert str(refused.value) == f"`train.objective`: {message}."


@pytest.mark.parametrize(
    "name", [*PRESETS, "mine.py:f", "/a/b c/mine.py:_f2", "s3://bucket/mine.py:été"]
)
def test_a_preset_and_a_function_of_a_file_are_accepted(name: str):
    assert load_config(None, [f"train.objective={name}"]).train.objective == name


@pytest.mark.parametrize("field", ["forget_weight", "retain_weight", "kl_weight"])
def test_a_negative_weight_is_refused(field: str):
    with pytest.raises(ValidationError, match=field):
        Train(**{field: -0.1})
