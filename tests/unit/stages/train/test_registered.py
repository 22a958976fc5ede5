"""Registered objectives: the text that workers receive and that enters the fingerprint."""

import importlib.util
import math
import subprocess
import sys
from collections.abc import Iterator
from math import exp as exponential
from math import inf
from pathlib import Path
from types import FunctionType
from typing import Any

import pytest
import torch
from torch import Tensor, where
from torch.nn import functional
from torch.nn.functional import logsigmoid

import meow_ray
from meow_ray import register_objective, uses
from meow_ray.config import Train
from meow_ray.core.manifest import Artifact
from meow_ray.errors import MeowError
from meow_ray.pipeline.pipeline import Pipeline, load_config
from meow_ray.stages.train.losses import Sequences
from meow_ray.stages.train.objectives import REGISTERED, ObjectiveSpec, resolve, source_of

PROJECT = Path(meow_ray.__file__).parents[1]

FACTOR = 0.25
GREETING = 'it\'s "quoted"\nand has two lines'
SWITCH = True
NOTHING = None
BOUND = -inf


@pytest.fixture(autouse=True)
def registered_objectives_are_removed() -> Iterator[None]:
    REGISTERED.clear()
    yield
    REGISTERED.clear()


def spec_of(name: str, **options: Any) -> ObjectiveSpec:
    return resolve(Train(objective=name, **options), source_of(name))


def answers() -> Sequences:
    """Returns two answers of two tokens each, over a vocabulary of three."""
    return Sequences(
        logits=torch.tensor([[0.5, -1.0, 2.0], [1.0, 0.0, 0.25], [0.0, 3.0, 1.0], [2.0, 2.0, 0.0]]),
        labels=torch.tensor([0, 1, 2, 0]),
        owner=torch.tensor([0, 0, 1, 1]),
        num_sequences=2,
        total_tokens=4,
        total_sequences=2,
        reference_log_probs=torch.tensor([-1.0, -2.0, -0.5, -3.0]),
    )


# --- registering ----------------------------------------------------------------------------------


def test_a_plain_decorator_registers_a_function_under_its_name():
    @register_objective
    def mine(forget: Sequences) -> Tensor:
        return forget.token_mean(forget.log_probs)

    spec = spec_of("mine")
    assert isinstance(mine, FunctionType), "the program can still call it"
    assert (spec.function, spec.reads, spec.reference) == ("mine", ("forget",), "none")
    assert dict(spec.settings) == {}
    assert spec.load()(answers()) == mine(answers())


def test_a_name_and_a_reference_can_be_given():
    @register_objective(name="other", reference="log_probs")
    def mine(forget: Sequences) -> Tensor:
        return forget.sequence_mean(forget.log_ratio)

    assert list(REGISTERED) == ["other"]
    spec = spec_of("other")
    assert (spec.function, spec.reference) == ("other", "log_probs")
    assert spec.load().__name__ == "other"
    assert spec.load()(answers()) == mine(answers())


def test_a_function_is_registered_by_a_call_too():
    def mine(forget: Sequences) -> Tensor:
        return forget.token_mean(forget.log_probs)

    assert register_objective(mine) is mine
    assert register_objective(name="again")(mine) is mine
    assert list(REGISTERED) == ["mine", "again"]


def test_uses_below_the_decorator_sets_the_reference():
    @register_objective
    @uses("log_probs")
    def mine(forget: Sequences) -> Tensor:
        return forget.sequence_mean(forget.log_ratio)

    assert spec_of("mine").reference == "log_probs"
    assert spec_of("mine").load()(answers()) == mine(answers())


def test_a_function_that_is_registered_again_replaces_the_first():
    def version(factor: float) -> None:
        if factor == 1:

            @register_objective
            def mine(forget: Sequences) -> Tensor:
                return forget.token_mean(forget.log_probs)
        else:

            @register_objective
            def mine(forget: Sequences) -> Tensor:
                return 2 * forget.token_mean(forget.log_probs)

    version(1)
    first = spec_of("mine").load()(answers())
    version(2)
    assert spec_of("mine").load()(answers()) == 2 * first


def test_roles_are_the_positional_parameters_and_settings_the_keyword_parameters():
    start = 2

    @register_objective
    def mine(inverted: Sequences, forget: Sequences, *, beta: float = FACTOR, first: int = start):
        return inverted.token_mean(inverted.log_probs) * beta + forget.num_sequences * first

    spec = spec_of("mine")
    assert spec.reads == ("inverted", "forget")
    assert dict(spec.settings) == {"beta": 0.25, "first": 2}
    assert [type(value) for value in spec.settings.values()] == [float, int]
    changed = spec_of("mine", settings={"beta": 3})
    assert dict(changed.settings) == {"beta": 3, "first": 2}


def test_a_setting_without_a_default_has_to_be_set():
    @register_objective
    def mine(forget: Sequences, *, beta: float) -> Tensor:
        return forget.token_mean(forget.log_probs) * beta

    with pytest.raises(MeowError, match=r"`train\.settings\.beta` is not set"):
        spec_of("mine")
    assert spec_of("mine", settings={"beta": 2.0}).settings == {"beta": 2.0}


# --- the text of a module -------------------------------------------------------------------------


def test_modules_imported_functions_and_constants_travel():
    @register_objective
    def mine(forget: Sequences) -> Tensor:
        loss = logsigmoid(forget.log_probs) * math.pi + exponential(FACTOR)
        loss = where(loss > BOUND, functional.relu(loss), torch.zeros_like(loss))
        loss = loss + len(GREETING)
        assert isinstance(loss, Tensor)
        return forget.token_mean(loss) if SWITCH and NOTHING is None else loss

    assert source_of("mine") == (
        "from __future__ import annotations\n"
        "BOUND = float('-inf')\n"
        "FACTOR = 0.25\n"
        f"GREETING = {GREETING!r}\n"
        "NOTHING = None\n"
        "SWITCH = True\n"
        "from torch import Tensor as Tensor\n"
        "from math import exp as exponential\n"
        "import torch.nn.functional as functional\n"
        "from torch._C._nn import log_sigmoid as logsigmoid\n"
        "import math as math\n"
        "import torch as torch\n"
        "from torch import where as where\n"
        "def mine(forget: Sequences) -> Tensor:\n"
        "    loss = logsigmoid(forget.log_probs) * math.pi + exponential(FACTOR)\n"
        "    loss = where(loss > BOUND, functional.relu(loss), torch.zeros_like(loss))\n"
        "    loss = loss + len(GREETING)\n"
        "    assert isinstance(loss, Tensor)\n"
        "    return forget.token_mean(loss) if SWITCH and NOTHING is None else loss\n"
        "mine.reference = 'none'\n"
    )
    assert spec_of("mine").load()(answers()) == mine(answers())


def test_globals_of_nested_functions_and_classes_travel():
    @register_objective
    def mine(forget: Sequences) -> Tensor:
        class Scale:
            factor = FACTOR
            doubled = factor * 2

        def scaled(values: Tensor) -> Tensor:
            return torch.stack([value * Scale.doubled for value in values]).exp()

        return forget.token_mean(scaled(forget.log_probs)) + math.pi

    assert spec_of("mine").load()(answers()) == mine(answers())


def test_an_import_inside_the_function_needs_no_import_outside():
    @register_objective
    def mine(forget: Sequences) -> Tensor:
        from torch import sigmoid

        return forget.token_mean(sigmoid(forget.log_probs))

    assert "import" not in str(source_of("mine")).partition("def mine")[0].partition("\n")[2]
    assert spec_of("mine").load()(answers()) == mine(answers())


PROGRAM = """
import importlib.abc, sys

class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.split(".")[0] in ("tests", "test_registered"):
            raise ImportError(name)

sys.meta_path.insert(0, Refuse())
import torch
from meow_ray.config import Train
from meow_ray.stages.train.losses import Sequences
from meow_ray.stages.train.objectives import resolve

with open(sys.argv[1]) as file:
    spec = resolve(Train(objective="mine"), file.read())
answers = torch.load(sys.argv[2], weights_only=True)
print(spec.load()(Sequences(**answers), **spec.settings).item().hex())
"""


def test_the_source_gives_the_same_loss_in_a_fresh_interpreter(tmp_path: Path):
    @register_objective(reference="log_probs")
    def mine(forget: Sequences, *, beta: float = 0.5) -> Tensor:
        """Is NPO with a factor."""
        ratio = -beta * forget.log_ratio
        return forget.sequence_mean(functional.logsigmoid(ratio)) * FACTOR + math.pi

    (tmp_path / "source.py").write_text(str(source_of("mine")))
    fields = {name: value for name, value in vars(answers()).items() if value is not None}
    torch.save(fields, tmp_path / "answers.pt")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "source.py"), str(tmp_path / "answers.pt")],
        cwd=tmp_path,
        env={"PYTHONPATH": str(PROJECT), "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == mine(answers(), beta=0.5).item().hex()


# --- in a configuration ---------------------------------------------------------------------------


def test_a_configuration_may_name_a_registered_objective():
    overrides = ["train.objective=mine"]
    with pytest.raises(MeowError, match=r"no objective 'mine'\. Choose from meow, .*, rmu, or"):
        load_config(None, overrides)

    @register_objective
    def mine(forget: Sequences) -> Tensor:
        return forget.log_probs

    assert load_config(None, overrides).train.objective == "mine"
    with pytest.raises(
        MeowError, match=r"no objective 'mind'\. Choose from meow, .*, rmu, mine, or"
    ):
        load_config(None, ["train.objective=mind"])


def test_roles_that_do_not_exist_are_refused_when_the_objective_is_configured():
    @register_objective
    def mine(forgotten: Sequences) -> Tensor:
        return forgotten.log_probs

    with pytest.raises(
        MeowError, match=r"mine has parameters before `\*` that are not roles \(forgotten\)"
    ):
        spec_of("mine")


TEXT = """
from meow_ray import register_objective

@register_objective
def mine(forget, *, beta=0.5):
    return forget.token_mean(forget.log_probs) * beta
"""


def fingerprint(folder: Path, text: str) -> str:
    """Returns the fingerprint of `train` after a program with this text has run."""
    file = folder / f"program_{len(list(folder.glob('*.py')))}.py"
    file.write_text(text)
    module_spec = importlib.util.spec_from_file_location(file.stem, file)
    assert module_spec is not None
    assert module_spec.loader is not None
    module_spec.loader.exec_module(importlib.util.module_from_spec(module_spec))
    names = ("facts", "target")
    pipeline = Pipeline(
        load_config(None, [f"storage.root={folder}/root", "train.objective=mine"]),
        given={name: Artifact(name, "", f"digest of {name}") for name in names},
    )
    (train,) = pipeline.selection("train", None, None)
    state = pipeline.state(train)
    assert state.fingerprint is not None
    return state.fingerprint


def test_the_fingerprint_of_train_depends_on_the_text_of_the_function(tmp_path: Path):
    first = fingerprint(tmp_path, TEXT)
    assert fingerprint(tmp_path, TEXT) == first
    assert fingerprint(tmp_path, TEXT.replace(") * beta", ") / beta")) != first
    assert fingerprint(tmp_path, TEXT.replace("0.5", "0.75")) != first


def test_the_fingerprint_of_train_does_not_depend_on_comments_and_layout(tmp_path: Path):
    first = fingerprint(tmp_path, TEXT)
    above = TEXT.replace("def mine", "# the factor comes last\ndef mine")
    after = TEXT.replace("* beta\n", "* beta  # the factor comes last\n")
    inside = TEXT.replace("    return", "    # the factor comes last\n\n    return")
    layout = TEXT.replace("(forget, *, beta=0.5)", "(\n    forget,\n    *,\n    beta = .5,\n)")
    for text in (above, after, inside, layout):
        assert text != TEXT
        assert fingerprint(tmp_path, text) == first


def test_the_fingerprint_of_train_depends_on_the_constants_that_the_function_uses(tmp_path: Path):
    with_constant = TEXT.replace("* beta", "* FACTOR").replace("@reg", "FACTOR = 2\n\n@reg")
    other_constant = with_constant.replace("FACTOR = 2", "FACTOR = 3")
    other_program = with_constant.replace("FACTOR = 2", "FACTOR = 2\nUNUSED = 3")
    assert fingerprint(tmp_path, with_constant) != fingerprint(tmp_path, other_constant)
    assert fingerprint(tmp_path, with_constant) == fingerprint(tmp_path, other_program)
