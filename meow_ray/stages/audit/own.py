"""Attacks of the user's own files, which `audit.attacks` names as `FILE.py:FUNCTION`."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from meow_ray.config import ATTACKS, JUDGE, OWN_OBJECTIVE, Audit, Config
from meow_ray.core import own_code, storage
from meow_ray.core.manifest import Artifact
from meow_ray.core.outside import OutsideInput
from meow_ray.errors import MeowError
from meow_ray.stages.audit.attack import Attack, Question, Subject
from meow_ray.stages.audit.attacks.leaks import largest_leak

KEY = "audit.attacks"


def _own_attacks(config: Config, verify: bool) -> Artifact:
    """Returns the texts of the user's files, by name of the attack; they are the digest."""
    sources: dict[str, str] = {}
    for name in config.audit.attacks:
        if name in ATTACKS:
            continue
        if not re.fullmatch(OWN_OBJECTIVE, name):
            raise MeowError(
                f"`{KEY}`: {name} is not of the form FILE.py:FUNCTION. Correct the name."
            )
        function = name.rpartition(":")[2]
        if function in (*ATTACKS, JUDGE) or function in sources:
            raise MeowError(
                f"`{KEY}`: there are two attacks called {function}. Rename the function in "
                f"{storage.display(name.rpartition(':')[0])}."
            )
        sources[function] = own_code.read(name, KEY)
    load(sources)
    return Artifact("own_attacks", "", storage.json_digest(sources), value=sources)


OWN_ATTACKS = OutsideInput("own_attacks", _own_attacks)
"""The user's own attacks."""


def sources(config: Config) -> Mapping[str, str]:
    """Returns the texts of the user's files, by name of the attack.

    Raises:
        MeowError: a file cannot be read, or has no such attack.
    """
    found: Mapping[str, str] = OWN_ATTACKS.resolve(config, False).value
    return found


def load(sources: Mapping[str, str]) -> list[Attack]:
    """Returns the attacks of the user's files; this runs the files.

    A file has a function `(Subject, Audit) -> Iterable[Question]`, whose replies are scored by the
    largest leak, or an `Attack`, of which only the name is replaced.

    Args:
        sources: texts of the files, by the name of the function or `Attack`.

    Raises:
        MeowError: a file does not run, or has neither.
    """
    return [_load(name, source) for name, source in sources.items()]


def _load(name: str, source: str) -> Attack:
    try:
        found: Any = getattr(own_code.run(source, f"audit_attack_{name}", KEY), name)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever the user's file does
        raise MeowError(
            f"`{KEY}`: {name} cannot be loaded ({error!r}). Correct the file."
        ) from None
    if isinstance(found, Attack):
        return replace(found, name=name, ask=_naming_errors(name, found.ask))
    if callable(found):
        return Attack(name, "black box", _naming_errors(name, found), largest_leak)
    raise MeowError(f"`{KEY}`: {name} is neither a function nor an Attack. Correct the file.")


def _naming_errors(name: str, ask: Any) -> Any:
    """Wraps a user's function: its errors become a MeowError without text of facts."""

    def checked(subject: Subject, spec: Audit) -> Iterable[Question]:
        try:
            questions = list(ask(subject, spec))
        except Exception as error:  # noqa: BLE001 - whatever the user's function does
            raise MeowError(
                f"`{KEY}`: {name} fails on the fact {subject.fact_id} ({type(error).__name__}). "
                "Correct the function."
            ) from None
        if not all(isinstance(question, Question) for question in questions):
            raise MeowError(
                f"`{KEY}`: {name} must return values of the class Question. Import it from "
                "meow_ray.stages.audit.attack."
            )
        return questions

    return checked
