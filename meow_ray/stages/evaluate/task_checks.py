"""Checks of the tasks of lm-evaluation-harness before a run: their names and their data."""

from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from meow_ray.config import LmEval
from meow_ray.stages.evaluate.lm_eval import check_installed

TIMEOUT = 10
"""Seconds that the hub has to answer whether it has a data set."""


def task_faults(spec: LmEval, task_folder: str | None) -> Iterator[str]:
    """Yields what is wrong with the tasks, a paragraph each.

    Args:
        spec: the tasks.
        task_folder: folder with the user's task files.

    Raises:
        MeowError: the harness is not installed.
    """
    check_installed(spec)
    if not spec.tasks:
        return
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=task_folder)
    known = set(manager.all_tasks)
    tasks_by_data: dict[tuple[str, str | None], str] = {}
    for name in spec.tasks:
        if name not in known:
            yield unknown_task(name, known)
            continue
        for settings in _settings_of(name, manager.task_index):
            yield from _missing_files(name, settings)
            path = settings.get("dataset_path")
            if isinstance(path, str) and _is_hub_name(path):
                tasks_by_data.setdefault((path, settings.get("dataset_name")), name)
    yield from _unreachable(tasks_by_data)


def unknown_task(name: str, known: Iterable[str]) -> str:
    """Returns the paragraph about a task that the harness does not know."""
    nearest = get_close_matches(name, list(known), n=1)
    question = f" Did you mean {nearest[0]}?" if nearest else ""
    return (
        f"`evaluate.lm_eval.tasks`: the harness does not know the task {name}.{question} "
        "Correct the name, or put its file into `evaluate.task_folder`."
    )


def _settings_of(name: str, index: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yields the settings of a task, or of all tasks of a group or a tag."""
    entry = index.get(name)
    settings = getattr(entry, "cfg", None) or {}
    listed = settings.get("task")
    yield settings
    members = [] if listed == name else sorted(getattr(entry, "tags", ()))
    if isinstance(listed, list):
        members += [item if isinstance(item, str) else item.get("task") for item in listed]
    for member in members:
        if isinstance(member, str) and member != name:
            yield from _settings_of(member, index)


def _missing_files(task: str, settings: Mapping[str, Any]) -> Iterator[str]:
    """Yields the files of a task's data that do not exist."""
    options = settings.get("dataset_kwargs")
    files = options.get("data_files") if isinstance(options, dict) else None
    for file in _leaves(files):
        if "://" not in file and "*" not in file and not Path(file).exists():
            yield (
                f"`evaluate.lm_eval.tasks`: the data of {task} cannot be read: there is no file "
                f"{file}. Correct the path in the task's file; a relative one begins at the folder "
                "of the run."
            )


def _leaves(value: Any) -> Iterator[str]:
    """Yields the texts in nested lists and mappings."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _leaves(item)
    elif isinstance(value, list):
        for item in value:
            yield from _leaves(item)


def _is_hub_name(path: str) -> bool:
    from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES

    return path not in _PACKAGED_DATASETS_MODULES and not Path(path).exists()


def _unreachable(tasks_by_data: Mapping[tuple[str, str | None], str]) -> Iterator[str]:
    """Yields the data sets that are neither on the hub nor on this machine, one per task."""
    from datasets import config

    hub_answers = not config.HF_HUB_OFFLINE
    named = set()
    for (path, name), task in tasks_by_data.items():
        reason = None
        if hub_answers:
            reason, hub_answers = _hub_fault(path)
        if not hub_answers:
            reason = None if _is_cached(path, name) else "the hub cannot be reached"
        if reason and task not in named:
            named.add(task)
            yield (
                f"`evaluate.lm_eval.tasks`: the data of {task} cannot be reached ({path}: "
                f"{reason}). Connect to the hub, run the task once where it can be reached and "
                "copy its cache here, or remove the task."
            )


def _hub_fault(path: str) -> tuple[str | None, bool]:
    """Returns why the hub does not give a data set, or None; and whether the hub answers."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    try:
        HfApi().dataset_info(path, timeout=TIMEOUT)
    except GatedRepoError:
        return "it is gated; accept its terms on the hub and set HF_TOKEN", True
    except RepositoryNotFoundError:
        return "the hub has no such data set", True
    except Exception:  # noqa: BLE001 - the hub's HTTP library raises errors of many types
        return None, False
    return None, True


def _is_cached(path: str, name: str | None) -> bool:
    """Whether a data set was loaded on this machine before."""
    from datasets import config
    from datasets.naming import camelcase_to_snakecase
    from huggingface_hub.constants import HF_HUB_CACHE

    parts = path.split("/")
    parts[-1] = camelcase_to_snakecase(parts[-1])
    prepared = Path(config.HF_DATASETS_CACHE, "___".join(parts))
    downloaded = Path(HF_HUB_CACHE, f"datasets--{path.replace('/', '--')}", "snapshots")
    pattern = f"{name}*" if name else "*"
    return any(prepared.glob(pattern)) or (downloaded.exists() and any(downloaded.iterdir()))
