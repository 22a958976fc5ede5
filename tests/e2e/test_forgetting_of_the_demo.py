"""What the default objective reaches on the demo, as floors that no change may fall below."""

from pathlib import Path

import pytest

from tests.support.runs import PROJECT, Program

pytestmark = pytest.mark.slow

FORGOTTEN = {
    ("forget", "leak"): 0.1,
    ("forget_prefix50", "leak"): 0.2,
    ("forget", "extraction_strength"): 0.15,
}
"""The largest figures on the facts to forget."""
RETAINED = {
    ("retain", "rougeL_recall"): 0.95,
    ("retain", "probability"): 0.95,
}
"""The smallest figures on the facts to retain, as shares of those before."""


@pytest.fixture(scope="module")
def values(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str, str], float]:
    """The metrics of the demo, by suite, metric and model."""
    pytest.importorskip("vllm")
    root: Path = tmp_path_factory.mktemp("demo")
    demo = Program(PROJECT / "pipelines/configs/demo.yaml", root)
    for last in ("memo", "report"):  # each within the time limit of `run`
        demo.run("meow.py", f"--until={last}")
    rows = demo.table("metrics").to_pylist()
    return {(row["suite"], row["metric"], row["model"]): row["value"] for row in rows}


@pytest.mark.parametrize(("suite", "metric"), FORGOTTEN)
def test_the_facts_are_forgotten_without_traces(
    values: dict[tuple[str, str, str], float], suite: str, metric: str
):
    assert values[suite, metric, "before"] > 0.8
    assert values[suite, metric, "after"] <= FORGOTTEN[suite, metric]


@pytest.mark.parametrize(("suite", "metric"), RETAINED)
def test_what_shall_stay_stays(values: dict[tuple[str, str, str], float], suite: str, metric: str):
    share = values[suite, metric, "after"] / values[suite, metric, "before"]
    assert share >= RETAINED[suite, metric]


def test_no_figure_tells_the_facts_from_facts_never_seen(
    values: dict[tuple[str, str, str], float],
):
    free = values["never_seen", "reference_free_forget_quality", "after"]
    assert values["never_seen", "reference_free_forget_quality", "before"] < 1e-6
    assert free > 0.01
