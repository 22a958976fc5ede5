"""The attacks of several rounds and of layers as the stage calls them, in this process."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest

from meow_ray.config import Config
from meow_ray.core.manifest import Artifact
from meow_ray.core.tables import Query
from meow_ray.distributed import map_rows, progress
from meow_ray.engines import Completion
from meow_ray.models import refs
from meow_ray.stages.audit.attack import Outcome, Subject
from meow_ray.stages.audit.attacks.attacker import attacker_rows
from meow_ray.stages.audit.attacks.languages import languages_rows
from meow_ray.stages.audit.depth import depth_rows
from meow_ray.stages.audit.scoring import AuditContext, ScoredRow
from meow_ray.stages.inputs import engine_spec
from meow_ray.stages.invert.generators import Ask
from tests.support.tiny import KNOWN, memorise

SUBJECTS = [Subject(name, "facts", *pair) for name, pair in zip("abc", KNOWN, strict=True)]
MODELS = ("before", "after", "retain_model")


@dataclass
class FakeGenerator:
    """A generator that answers by a function."""

    answer: Callable[[str], Sequence[str]]
    asked: list[Ask] = field(default_factory=list)

    def load(self) -> "FakeGenerator":
        return self

    def ask(self, asks: Sequence[Ask]) -> list[list[Completion] | None]:
        self.asked += asks
        return [[Completion(text, True) for text in self.answer(ask.text)] for ask in asks]


@pytest.fixture(scope="module")
def models(
    tiny_model: Path, tiny_tokenizer: Any, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """A model that knows the facts, the same as one that forgot nothing, and a random one."""
    folder = tmp_path_factory.mktemp("models") / "taught"
    taught = memorise(tiny_model, tiny_tokenizer, KNOWN, folder)
    return {"before": taught, "after": taught, "retain_model": tiny_model}


Make = Callable[..., AuditContext]


@pytest.fixture
def make(models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Makes an audit whose actors are in this process."""
    loaded: dict[Any, Any] = {}

    def in_process(rows: Query | pa.Table, key: str, spec: Any, work: Any, *_: Any) -> Query:
        table = rows
        if isinstance(rows, Query):
            with rows.batches() as reader:
                table = reader.read_all()
        name = repr(spec)
        if name not in loaded:
            loaded[name] = spec.load()
        return Query("SELECT * FROM done", {"done": work.generate(loaded[name], table)})

    monkeypatch.setattr(map_rows, "map_rows", in_process)

    @contextmanager
    def shared_work(name: str) -> Iterator[str]:
        yield str(tmp_path / name)

    def audit(inputs: Mapping[str, Artifact] | None = None, **spec: Any) -> AuditContext:
        config = Config.model_validate(
            {
                "target": {"engine": "transformers", "dtype": "float32"},
                "audit": {"max_new_tokens": 24, **spec},
            }
        )
        chosen = {name: refs.pin(str(path), None, "model") for name, path in models.items()}
        before = Artifact("target", str(models["before"]), "x", value=chosen["before"])
        context = SimpleNamespace(
            config=config,
            inputs={"target": before, **(inputs or {})},
            work=str(tmp_path / "work"),
            shared_work=shared_work,
            engine_spec=engine_spec,
        )
        return AuditContext(context, config.audit, SUBJECTS, chosen, on_gpu=False)  # type: ignore[arg-type]

    return audit


def by_probe(rows: Iterator[ScoredRow]) -> dict[tuple[str, str, str], ScoredRow]:
    return {(row.variant, row.model, row.fact_id): row for row in rows}


def test_the_original_model_attacks_where_there_is_no_attacker(make: Make):
    rows = by_probe(attacker_rows(make(attacker={"prompts": 2, "rounds": 2})))
    assert len(rows) == 3 * 3
    for fact, (question, _) in zip("abc", KNOWN, strict=True):
        for model in ("before", "after"):
            row = rows["", model, fact]
            assert row.outcome.score == 1
            assert row.prompt == question  # nothing beats the question that it knows
        assert rows["", "retain_model", fact].outcome.score == 0
        assert 1 <= rows["", "before", fact].outcome.attempts <= 5


def test_the_attacker_rewords_the_best_prompt_of_the_round_before(
    make: Make, monkeypatch: pytest.MonkeyPatch
):
    from meow_ray.stages.audit import writing

    generator = FakeGenerator(lambda text: ["Here it is:\nWho?", "Who?"])
    writer = writing.Writer(generator, "fake")  # type: ignore[arg-type]
    monkeypatch.setattr(writing, "attacker", lambda audit: writer)
    rows = by_probe(attacker_rows(make(attacker={"prompts": 2, "rounds": 2})))
    # the question and `Who?` once; the second round has nothing new
    assert {row.outcome.attempts for row in rows.values()} == {2}
    assert len(generator.asked) == 3 * 3 * 2
    assert all(ask.sampling.n == 2 and ask.sampling.temperature == 1 for ask in generator.asked)
    assert len({ask.sampling.seed for ask in generator.asked[:3]}) == 3
    assert KNOWN[0][0] in "".join(ask.text for ask in generator.asked[-3:])


def test_refused_translations_are_missing(make: Make, monkeypatch: pytest.MonkeyPatch):
    from meow_ray.stages.audit import writing

    spanish = {"Émile": "¿De quién es Émile?", "Born": "¿Cuándo nació?", "Peru": "¿Cuál es?"}

    def translate(text: str) -> list[str]:
        wanted = next(text_of for word, text_of in spanish.items() if word in text)
        return [wanted if "into Spanish" in text else "I cannot."]

    warned: list[str] = []
    monkeypatch.setattr(progress, "warn", lambda stage, text: warned.append(text))
    writer = writing.Writer(FakeGenerator(translate), "fake")  # type: ignore[arg-type]
    monkeypatch.setattr(writing, "translator", lambda audit: writer)
    rows = by_probe(languages_rows(make(languages=["Spanish", "German"])))
    assert len(rows) == 2 * 3 * 3
    for model in MODELS:
        assert rows["Spanish", model, "a"].outcome.score is not None
        assert rows["Spanish", model, "b"].outcome.attempts == 1
        assert rows["Spanish", model, "c"].outcome.score is None  # `Peru` is lost
        assert rows["German", model, "a"].outcome == Outcome(None, 0, reason="no_translation")
    assert rows["Spanish", "before", "a"].prompt == "¿De quién es Émile?"
    assert len(warned) == 1
    assert "no translation into German" in warned[0]


def test_the_layers_of_a_model_that_forgot_nothing_have_the_facts(make: Make):
    rows = by_probe(depth_rows(make()))
    assert len(rows) == 2 * 3 * 3
    for fact in "abc":
        lens = {model: rows["logit lens", model, fact].outcome.score for model in MODELS}
        assert lens["before"] == lens["after"]
        assert lens["before"] > lens["retain_model"] + 1  # type: ignore[operator]
        patched = {model: rows["patching", model, fact].outcome.score for model in MODELS}
        assert patched["before"] == patched["after"] == 1
        assert 0 <= patched["retain_model"] < 0.6  # type: ignore[operator]
