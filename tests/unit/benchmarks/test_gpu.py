"""The pure parts of the GPU benchmark: formulas, time, missing packages, table and JSON."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import gpu
from benchmarks.gpu_checks import flops, models, table
from benchmarks.gpu_checks.flops import Sizes
from benchmarks.gpu_checks.models import TINY
from benchmarks.gpu_checks.registry import CHECKS, LIMITS, Check
from benchmarks.gpu_checks.runner import Clock, limit_of, run_all
from benchmarks.gpu_checks.values import Limits, Measurement, Setting
from benchmarks.gpu_checks.worker import Outcome
from tests.support.runs import PROJECT

SIZES = Sizes(body=1000, head=100, layers=2, attention_width=8)


# --- operations ----------------------------------------------------------------------------------


def test_training_takes_six_operations_per_weight_and_attention_twelve():
    # weights: 6 · (1000 · 7 tokens + 100 · 3 predicted); attention: 12 · 2 · 8 · (3² + 4²)
    assert flops.training_flops(SIZES, [3, 4], 3) == 6 * 7300 + 12 * 2 * 8 * 25 == 48_600


def test_a_frozen_model_takes_four_operations_per_weight_and_its_adapter_six():
    expected = 4 * 7300 + 6 * 50 * 7 + 12 * 2 * 8 * 25
    assert flops.training_flops(SIZES, [3, 4], 3, adapter=50) == expected == 36_100


def test_reading_takes_a_third_of_the_operations_of_training():
    assert 3 * flops.forward_flops(SIZES, [3, 4], 3) == flops.training_flops(SIZES, [3, 4], 3)


@given(st.lists(st.integers(1, 50), min_size=1), st.integers(0, 50))
def test_operations_of_sequences_add_up(lengths: list[int], predicted: int):
    apart = [flops.training_flops(SIZES, [length], 0) for length in lengths]
    together = flops.training_flops(SIZES, lengths, predicted)
    assert together == sum(apart) + 6 * SIZES.head * predicted


@pytest.mark.parametrize("tied", [True, False])
def test_the_sizes_of_a_llama_leave_out_the_input_embedding(tied: bool):
    # by hand: queries and outputs 256², keys and values 256 · 128, feed-forward 3 · 256 · 512
    block = 2 * 256**2 + 2 * 256 * 128 + 3 * 256 * 512 + 2 * 256
    sizes = flops.sizes_of(models.build(replace(TINY, tied=tied), "meta", "float32"))
    assert sizes == Sizes(body=2 * block + 256, head=512 * 256, layers=2, attention_width=256)


# --- time ----------------------------------------------------------------------------------------


def no_check(setting: Setting) -> Iterator[Measurement]:
    raise AssertionError("only a worker runs checks")


def check(name: str, **options: Any) -> Check:
    return Check(name, no_check, **{"most": 100.0, **options})


@pytest.mark.parametrize(
    ("left", "expected"), [(500, 100), (100, 100), (60, 60), (30, 30), (29.9, None), (-1, None)]
)
def test_a_check_gets_its_most_or_what_is_left_but_not_less_than_its_least(
    left: float, expected: float | None
):
    assert limit_of(check("a", least=30.0), left, reduced=False) == expected


def test_the_limit_of_a_check_holds_for_gpus_only():
    assert limit_of(check("a", most=1.0), 500, reduced=True) == 500


class FakeWorker:
    """Takes some seconds for each check."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.now = 0.0
        self.seconds = seconds
        self.calls: list[str | tuple[Any, float]] = []

    def run(self, function: Callable[..., Any], setting: Setting, limit: float) -> Outcome:
        self.calls.append((function, limit))
        self.now += self.seconds
        return Outcome("passed")

    def close(self) -> None:
        self.calls.append("close")


def statuses(
    checks: list[Check], worker: FakeWorker, minutes: float = 60, device: str = "cpu"
) -> dict[str, tuple[str, str]]:
    outcomes = run_all(
        checks,
        Setting(device, "/nowhere"),
        Clock(minutes, lambda: worker.now),
        worker,  # type: ignore[arg-type]
        lambda package: package != "vllm",
        lambda check, outcome: None,
    )
    return {name: (outcome.status, outcome.detail) for name, outcome in outcomes.items()}


def test_checks_that_no_time_is_left_for_are_listed_and_shorter_ones_still_run():
    worker = FakeWorker(seconds=40)
    checks = [check("first"), check("long", least=30.0), check("short", least=5.0)]
    assert statuses(checks, worker, minutes=1) == {
        "first": ("passed", ""),
        "long": ("no time", "20 s left, 30 s needed to start"),
        "short": ("passed", ""),
    }
    assert worker.calls == [(no_check, 60.0), (no_check, 20.0)]


def test_packages_and_devices_that_are_missing_are_named():
    checks = [
        check("engine", needs=("torch", "vllm")),
        check("device", needs_gpu=True),
        check("plain", needs=("torch",)),
    ]
    assert statuses(checks, FakeWorker()) == {
        "engine": ("missing", "vllm"),
        "device": ("no GPU", "needs a CUDA device"),
        "plain": ("passed", ""),
    }
    assert statuses(checks, FakeWorker(), device="cuda")["device"] == ("passed", "")


def test_a_check_that_wants_a_process_to_itself_gets_it():
    worker = FakeWorker()
    statuses([check("a"), check("b", alone=True), check("c")], worker)
    ran = [call if isinstance(call, str) else "run" for call in worker.calls]
    assert ran == ["run", "close", "run", "close", "run"]


def test_checks_have_names_of_their_own_and_say_what_they_measure():
    names = [one.name for one in (LIMITS, *CHECKS)]
    assert len(names) == len(set(names))
    for one in (LIMITS, *CHECKS):
        function = getattr(one.run, "func", one.run)
        assert len(function.__doc__.splitlines()) > 1, one.name


# --- table and JSON -------------------------------------------------------------------------------

OUTCOMES = {
    "training": Outcome(
        "failed",
        "CheckError: differs",
        [
            Measurement("packed", 12345.6, "tokens/s", 0.4321, "model FLOPs utilisation"),
            Measurement("flash attention", None, note="missing: flash_attn"),
            Measurement("model", "tiny"),
        ],
        61.4,
    ),
    "quantised": Outcome("no GPU", "needs a CUDA device"),
}


def test_the_table_has_a_row_for_each_check_and_measurement():
    assert table.rows_of(OUTCOMES) == [
        ("training", "FAILED", "", "61 s", "", "CheckError: differs"),
        ("", "", "packed", "12,346 tokens/s", "43.2%", "model FLOPs utilisation"),
        ("", "", "flash attention", "not measured", "", "missing: flash_attn"),
        ("", "", "model", "tiny", "", ""),
        ("quantised", "no GPU", "", "0 s", "", "needs a CUDA device"),
    ]


def test_the_table_is_printed_with_the_device_and_what_is_not_installed(
    capsys: pytest.CaptureFixture[str],
):
    table.print_table("cpu, reduced", OUTCOMES, ["vllm", "ray"])
    printed = capsys.readouterr().out
    assert "Device: cpu, reduced" in printed
    assert "Not installed: vllm, ray" in printed
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in printed.splitlines()]
    assert ["quantised", "no GPU", "", "0 s", "", "needs a CUDA device"] in cells


def test_the_file_keeps_what_was_measured_and_what_was_not(tmp_path: Path):
    path = tmp_path / "new" / "gpu.json"
    table.write(path, table.document("NVIDIA X", 20, OUTCOMES, ["vllm"]))
    read = json.loads(path.read_text())
    assert (read["device"], read["minutes"], read["not_installed"]) == ("NVIDIA X", 20, ["vllm"])
    assert read["versions"]["torch"]
    training, quantised = read["checks"]
    assert training["check"] == "training"
    assert training["measurements"][0] == {
        "name": "packed",
        "value": 12345.6,
        "unit": "tokens/s",
        "share": 0.4321,
        "note": "model FLOPs utilisation",
    }
    assert (quantised["status"], quantised["measurements"]) == ("no GPU", [])


@pytest.mark.parametrize(
    ("name", "device", "title"), [("cpu", "cpu", "cpu, reduced"), ("NVIDIA X", "cuda", "NVIDIA X")]
)
def test_the_setting_takes_device_and_limits_from_the_first_check(
    name: str, device: str, title: str
):
    found = [
        Measurement("device", name),
        Measurement("bf16 matrix rate", 2.0, "TFLOP/s"),
        Measurement("memory bandwidth", 3.0, "TB/s"),
    ]
    expected = Setting(device, "/f", "m", Limits(flops=2e12, bandwidth=3e12))
    before = Setting("", "/f", "m")
    assert gpu.measured(Outcome("passed", "", found), before) == (title, expected)


# --- what has to be installed ---------------------------------------------------------------------

ALLOWED = ("filelock", "jinja2", "markupsafe", "regex", "rich", "pygments", "markdown_it", "mdurl")
"""What torch and transformers install, as far as the modules below import it."""
BARE = f"""
import importlib, sys
from importlib.machinery import PathFinder

class OnlyAllowed(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        known = {{*sys.stdlib_module_names, *{ALLOWED!r}, "benchmarks", "meow_ray"}}
        return super().find_spec(name, path, target) if name.partition(".")[0] in known else None

sys.meta_path[sys.meta_path.index(PathFinder)] = OnlyAllowed
for name in sys.argv[1:]:
    importlib.import_module(name)
"""


def test_checks_engine_and_forward_pass_need_only_torch_and_transformers():
    modules = (
        "benchmarks.gpu_checks.registry",
        "benchmarks.gpu_checks.runner",
        "benchmarks.gpu_checks.table",
        "meow_ray.engines.transformers",
        "meow_ray.stages.train.forward",
        "meow_ray.models.prompts",
    )
    done = subprocess.run(
        [sys.executable, "-c", BARE, *modules],
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_hidden_package_counts_as_not_installed():
    script = (
        "from benchmarks.gpu_checks.models import is_installed\n"
        "print(is_installed('pyarrow'), is_installed('vllm'), is_installed('filelock'))\n"
    )
    hiding = PROJECT / "tests" / "support" / "hiding"
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={
            **os.environ,
            "PYTHONPATH": f"{hiding}{os.pathsep}{PROJECT}",
            "HIDDEN_PACKAGES": "pyarrow,vllm",
        },
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.stdout == "False False True\n", done.stderr
