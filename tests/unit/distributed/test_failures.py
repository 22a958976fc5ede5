"""Errors that the user can fix, inside what Ray and other libraries wrap around them."""

import errno
from typing import Any

import pytest

from meow_ray.core import storage
from meow_ray.distributed.failures import OUT_OF_MEMORY, plain_user_errors, user_error
from meow_ray.errors import MeowError

MISTAKE = MeowError("facts.jsonl, line 3: answer is missing.")


class WrapperError(Exception):
    """Stands in for errors of Ray, which hold their cause in an attribute."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__("wrapped")
        vars(self).update(attributes)


def caused_by(cause: BaseException, error: BaseException | None = None) -> BaseException:
    """Returns an error that was raised from `cause`."""
    error = error or RuntimeError("the stage failed")
    error.__cause__ = cause
    return error


def out_of_memory(module: str) -> BaseException:
    """Returns an OutOfMemoryError that says it is from a module."""
    kind = type("OutOfMemoryError", (Exception,), {"__module__": module})
    return kind("no memory")


# --- where the cause is ---------------------------------------------------------------------------


def test_the_users_mistake_is_returned_itself():
    assert user_error(MISTAKE) is MISTAKE


def test_a_mistake_is_looked_up_through_a_chain_of_causes():
    assert user_error(caused_by(caused_by(caused_by(MISTAKE)))) is MISTAKE


@pytest.mark.parametrize(
    "attributes",
    [
        {"cause": MISTAKE},
        {"controller_failure": MISTAKE},
        {"worker_failures": {0: ValueError(), 3: MISTAKE}},
        {"cause": WrapperError(controller_failure=caused_by(WrapperError(cause=MISTAKE)))},
    ],
    ids=["task", "controller", "worker", "nested"],
)
def test_a_mistake_is_looked_up_in_the_attributes_of_rays_errors(attributes: dict[str, Any]):
    assert user_error(WrapperError(**attributes)) is MISTAKE


@pytest.mark.parametrize(
    "attributes",
    [
        {"cause": "facts.jsonl"},
        {"cause": None, "controller_failure": None},
        {"worker_failures": [MISTAKE]},
        {"worker_failures": {}},
    ],
)
def test_attributes_of_other_types_are_ignored(attributes: dict[str, Any]):
    assert user_error(WrapperError(**attributes)) is None


def test_errors_that_cause_each_other_end_the_search():
    first, second = RuntimeError(), RuntimeError()
    first.__cause__, second.__cause__ = second, first
    assert user_error(first) is None


def test_a_subclass_of_a_mistake_is_not_returned_but_its_cause_is():
    """Ray raises an object that is both its own error and the task's; its text has a traceback."""
    kind = type("RayTaskError(MeowError)", (MeowError,), {"cause": MISTAKE})
    assert user_error(kind("a traceback of many lines")) is MISTAKE


@pytest.mark.parametrize("error", [ValueError("x"), KeyError("x"), AssertionError("x")])
def test_other_errors_are_not_the_users(error: Exception):
    assert user_error(error) is None
    assert user_error(WrapperError(cause=error)) is None


# --- what is translated ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "message"),
    [
        ("ray.exceptions", OUT_OF_MEMORY["ray"]),
        ("torch", OUT_OF_MEMORY["torch"]),
        ("torch.cuda", OUT_OF_MEMORY["torch"]),
    ],
)
def test_memory_that_ran_out_is_explained(module: str, message: str):
    error = user_error(WrapperError(worker_failures={0: out_of_memory(module)}))
    assert type(error) is MeowError
    assert str(error) == message


@pytest.mark.parametrize("module", ["torchvision", "duckdb", "builtins"])
def test_memory_errors_of_other_libraries_are_not_explained(module: str):
    assert user_error(out_of_memory(module)) is None


def test_the_texts_on_memory_say_which_memory_and_what_to_do():
    assert OUT_OF_MEMORY["ray"].startswith("A node ran out of memory, ")
    assert OUT_OF_MEMORY["torch"].startswith("A GPU ran out of memory. ")
    assert all("Use smaller batches" in text for text in OUT_OF_MEMORY.values())


@pytest.mark.parametrize(
    ("number", "filename", "place"),
    [
        (errno.ENOSPC, None, "storage"),
        (errno.ENOSPC, "/data/x", "/data/x"),
        (errno.EDQUOT, None, "storage"),
        (errno.EACCES, "/data/x", "/data/x"),
        (errno.EROFS, "/data/x", "/data/x"),
        (errno.ENOENT, "/data/x", "/data/x"),
    ],
)
def test_errors_of_the_system_are_explained(number: int, filename: str | None, place: str):
    error = user_error(caused_by(OSError(number, "as the system says it", filename)))
    assert type(error) is MeowError
    assert str(error) == f"{place}: {storage.CAUSES[number]}."


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EACCES, "without a file"),
        OSError(errno.ENOENT, "without a file"),
        OSError(errno.EIO, "of another kind", "/data/x"),
        OSError("without a number"),
    ],
    ids=str,
)
def test_other_errors_of_the_system_are_not_the_users(error: OSError):
    assert user_error(error) is None


# --- the real errors of the libraries -------------------------------------------------------------


def test_the_real_errors_of_ray_and_torch_are_recognised():
    import ray.exceptions
    import torch

    task = ray.exceptions.RayTaskError("step", "a traceback of many lines", MISTAKE)
    assert user_error(task) is MISTAKE
    assert user_error(task.as_instanceof_cause()) is MISTAKE
    node = ray.exceptions.OutOfMemoryError("4 workers were killed")
    assert str(user_error(node)) == OUT_OF_MEMORY["ray"]
    gpu = torch.OutOfMemoryError("CUDA out of memory")
    assert str(user_error(gpu)) == OUT_OF_MEMORY["torch"]


# --- as a context ---------------------------------------------------------------------------------


def test_a_wrapped_mistake_is_raised_alone():
    with pytest.raises(MeowError) as caught, plain_user_errors():
        raise WrapperError(cause=MISTAKE)
    assert caught.value is MISTAKE
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


def test_a_plain_mistake_and_other_errors_pass_unchanged():
    with pytest.raises(MeowError) as mistake, plain_user_errors():
        raise MISTAKE
    assert mistake.value is MISTAKE
    other = ValueError("a fault of the program")
    with pytest.raises(ValueError, match="a fault of the program") as caught, plain_user_errors():
        raise other
    assert caught.value is other


def test_an_interrupt_is_never_translated():
    interrupt = caused_by(MISTAKE, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt), plain_user_errors():
        raise interrupt
