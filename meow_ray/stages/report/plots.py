"""The plots of the report, as SVG."""

import re
from collections.abc import Callable, Sequence
from io import StringIO
from typing import Any, NamedTuple

from meow_ray.core.manifest import Artifact

MAX_DUMBBELLS = 60
"""Facts up to which each has its own row in the plot of MEMO."""


_COLOURS = (
    "#d55e00",
    "#2b83c6",
    "#009e73",
    "#b6649a",
)  # after Okabe and Ito: distinct for the colour-blind


_MARKERS = "os^D"


_GREY = "#808080"  # readable on white and on black


SUITE_ORDER = ("forget", "retain", "tofu", "membership")


class ExamplePair(NamedTuple):
    """One example; `before` and `after` are rows of `schema.EXAMPLES`."""

    suite: str
    fact_id: str
    before: dict[str, Any]
    after: dict[str, Any]


def count_of_facts(count: int) -> str:
    """Returns a number of facts in words."""
    return "1 fact" if count == 1 else f"{count} facts"


def rank_in(name: str, order: Sequence[str]) -> int:
    """Returns the position of a name in an order; names that are not in it come last."""
    return order.index(name) if name in order else len(order)


def memo_plot(pairs: Sequence[ExamplePair]) -> str:
    """Returns the plot of MEMO before and after: a row per fact, or points if there are many facts."""
    ordered = sorted(
        pairs, key=lambda p: (rank_in(p.suite, SUITE_ORDER), p.suite, -p.before["memo"], p.fact_id)
    )
    label = f"MEMO before and after unlearning, {count_of_facts(len(ordered))}"
    if len(ordered) > MAX_DUMBBELLS:
        return _svg("memo", label, 6.0, lambda axes: _scatter(axes, ordered))
    return _svg("memo", label, 1.2 + 0.2 * len(ordered), lambda axes: _dumbbells(axes, ordered))


def _dumbbells(axes: Any, pairs: Sequence[ExamplePair]) -> None:
    for suite, colour, marker in _styles(pairs):
        places = [i for i, pair in enumerate(pairs) if pair.suite == suite]
        before, after = (
            [getattr(pairs[i], when)["memo"] for i in places] for when in ("before", "after")
        )
        axes.hlines(places, before, after, color=colour, alpha=0.5)
        style = {"edgecolors": colour, "marker": marker, "s": 30, "zorder": 3, "clip_on": False}
        axes.scatter(before, places, facecolors="none", label=f"before ({suite})", **style)
        axes.scatter(after, places, facecolors=colour, label=f"after ({suite})", **style)
    axes.set_yticks(range(len(pairs)), [pair.fact_id[:8] for pair in pairs])
    axes.set(xlabel="MEMO", xlim=(0, 1), ylim=(len(pairs) - 0.5, -0.5))
    axes.figure.legend(loc="outside upper left", ncols=4, frameon=False)


def _scatter(axes: Any, pairs: Sequence[ExamplePair]) -> None:
    axes.axline((0, 0), slope=1, color=_GREY, linestyle="--", linewidth=1)
    for suite, colour, marker in _styles(pairs):
        points = [(p.before["memo"], p.after["memo"]) for p in pairs if p.suite == suite]
        style = {"c": colour, "marker": marker, "s": 18, "alpha": 0.7, "clip_on": False}
        axes.scatter(
            *zip(*points, strict=True), label=suite, zorder=3 if suite == "forget" else 2, **style
        )
    axes.set(xlabel="MEMO before", ylabel="MEMO after", xlim=(0, 1), ylim=(0, 1), aspect="equal")
    axes.figure.legend(loc="outside upper left", ncols=4, frameon=False)


def _styles(pairs: Sequence[ExamplePair]) -> list[tuple[str, str, str]]:
    """Returns (suite, colour, marker) in the order of the pairs."""
    suites = dict.fromkeys(pair.suite for pair in pairs)
    return [
        (suite, _COLOURS[i % len(_COLOURS)], _MARKERS[i % len(_MARKERS)])
        for i, suite in enumerate(suites)
    ]


def distribution_plot(memo: Artifact) -> str | None:
    """Returns the histograms of MEMO before unlearning; None if `memo` was made elsewhere or is empty."""
    if memo.manifest is None or not memo.manifest.summary["answers"]:
        return None
    summary = memo.manifest.summary

    def draw(axes: Any) -> None:
        for (label, key), colour in zip(
            (("true", "true_answers"), ("inverted", "candidates")), _COLOURS, strict=False
        ):
            part = summary[key]
            if part["count"]:
                shares = [count / part["count"] for count in part["histogram"]]
                edges = [i / len(shares) for i in range(len(shares) + 1)]
                axes.stairs(
                    shares,
                    edges,
                    color=colour,
                    fill=True,
                    alpha=0.3,
                    label=f"{label} ({part['count']})",
                )
                axes.axvline(part["mean"], color=colour, linestyle="--", linewidth=1)
        axes.set(
            xlabel="MEMO before unlearning (dashed: mean)",
            ylabel="share of the answers",
            xlim=(0, 1),
        )
        axes.figure.legend(loc="outside upper left", ncols=2, frameon=False)

    return _svg(
        "distribution", f"Distribution of MEMO over {summary['answers']} answers", 3.0, draw
    )


def loss_plot(history: Sequence[dict[str, float]]) -> str:
    """Returns the plot of the training loss by optimiser step."""

    def draw(axes: Any) -> None:
        marker = "o" if len(history) < 50 else None
        axes.plot(
            [r["step"] for r in history],
            [r["loss"] for r in history],
            _COLOURS[1],
            marker=marker,
            markersize=3,
        )
        axes.set(xlabel="optimiser step", ylabel="loss per token")
        axes.xaxis.get_major_locator().set_params(integer=True)

    return _svg("loss", f"Training loss over {len(history)} steps", 3.0, draw)


def _svg(name: str, label: str, height: float, draw: Callable[[Any], None]) -> str:
    """Draws on fresh axes and returns an `<svg>` element with the same bytes every time; `height` in inches."""
    import matplotlib
    from matplotlib.figure import Figure

    settings = {
        "svg.hashsalt": "meow",
        "svg.fonttype": "none",  # real text: the page's style gives it font and colour
        "text.parse_math": False,
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.alpha": 0.3,
    } | dict.fromkeys(("axes.edgecolor", "xtick.color", "ytick.color", "grid.color"), _GREY)
    stream = StringIO()
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(8, height), layout="constrained")
        draw(figure.add_subplot())
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(stream, format="svg", transparent=True, metadata=nothing)
    svg = stream.getvalue().partition("<svg")[2]
    svg = re.sub(
        r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", svg
    )  # ids are unique on the page, not in one plot
    return f'<svg role="img" aria-label="{label}"{svg}'
