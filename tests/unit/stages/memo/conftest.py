"""Models for the tests of MEMO's steps: a random one, and one that has memorised the facts."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.memo import PlainModel, RecordingEngine, tokenizer_of_words
from tests.support.tiny import KNOWN, memorise, one_thread

Loaded = tuple[RecordingEngine, PlainModel]


@pytest.fixture(scope="package", autouse=True)
def single_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(scope="package")
def memorised_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "memorised"
    return memorise(tiny_model, tokenizer_of_words(), KNOWN, folder)


@pytest.fixture(scope="package", params=["random", "memorised"])
def model_folder(request: pytest.FixtureRequest) -> Path:
    """Runs a test with both models, or with the one that indirect parametrisation names."""
    name = "tiny_model" if request.param == "random" else "memorised_model"
    return Path(request.getfixturevalue(name))


@pytest.fixture(scope="package")
def loaded(model_folder: Path) -> Loaded:
    engine = RecordingEngine(model_folder)
    return engine, PlainModel(model_folder, engine.engine.device)


@pytest.fixture
def engine(loaded: Loaded) -> RecordingEngine:
    """The engine of the model, with an empty record."""
    engine, _ = loaded
    engine.generated, engine.forced = [], []
    return engine


@pytest.fixture
def plain(loaded: Loaded) -> PlainModel:
    """The same model without batches."""
    return loaded[1]
