"""Checks for the tests of the GPU benchmark; a worker process imports them from here."""

import importlib
import os
import signal
import sys
import time
from collections.abc import Iterator

from benchmarks.gpu_checks.values import CheckError, Measurement, Setting


def process_number(setting: Setting) -> Iterator[Measurement]:
    yield Measurement("process", float(os.getpid()))
    yield Measurement("device", setting.device)


def outside_its_tolerance(setting: Setting) -> Iterator[Measurement]:
    yield Measurement("difference", 2.0)
    raise CheckError("differs by 2.")


def without_a_package(setting: Setting) -> Iterator[Measurement]:
    yield Measurement("before", 1.0)
    importlib.import_module("no_such_package.part")


def without_a_module_of_the_project(setting: Setting) -> Iterator[Measurement]:
    yield Measurement("before", 1.0)
    importlib.import_module("meow_ray.no_such_module")


def hanging(setting: Setting) -> Iterator[Measurement]:
    yield Measurement("before", 1.0)
    time.sleep(600)


def killed(setting: Setting) -> Iterator[Measurement]:
    yield Measurement("before", 1.0)
    os.kill(os.getpid(), signal.SIGKILL)


def printing(setting: Setting) -> Iterator[Measurement]:
    print("to the output", flush=True)
    print("to the errors", file=sys.stderr, flush=True)
    yield Measurement("printed", 1.0)
