"""The plots of the report, as SVG."""

import re
from collections.abc import Callable, Mapping, Sequence
from io import StringIO
from typing import Any, NamedTuple

from meow_ray.core.formatting import format_number, format_optional
from meow_ray.core.manifest import Artifact
from meow_ray.stages.never_seen import Figures
from meow_ray.stages.report.ending import Ending
from meow_ray.stages.train.curve_file import Curve

MAX_DUMBBELLS = 60
"""Largest number of facts that have a row each in the plot of MEMO."""

SUITE_ORDER = ("forget", "retain", "tofu", "never_seen", "twins", "composite", "membership")
"""The suites that come first, in this order."""

LEAST_P_VALUE = 1e-6
"""Smaller p-values are drawn at this one, the lower edge of their plots."""

# after Okabe and Ito: the colour-blind can tell them apart
_COLOURS = ("#d55e00", "#2b83c6", "#009e73", "#b6649a")
_MARKERS = "os^D"
_GREY = "#808080"  # readable on white and on black


class ExamplePair(NamedTuple):
    """One example; `before` and `after` are rows of `EXAMPLES_SCHEMA`."""

    suite: str
    fact_id: str
    before: dict[str, Any]
    after: dict[str, Any]


def count_of_facts(count: int) -> str:
    """Returns `1 fact` or `7 facts`."""
    return _counted(count, "fact")


def _counted(count: int, noun: str) -> str:
    return f"1 {noun}" if count == 1 else f"{count} {noun}s"


def rank_in(name: str, order: Sequence[str]) -> int:
    """Returns the position of a name in an order; the length of the order if it is not in it."""
    return order.index(name) if name in order else len(order)


# --- MEMO of each fact ----------------------------------------------------------------------------


def memo_plot(pairs: Sequence[ExamplePair]) -> str:
    """Returns the plot of MEMO before and after.

    It has one row per fact, or is a scatter plot if there are more than `MAX_DUMBBELLS` facts.
    """
    ordered = sorted(
        pairs,
        key=lambda pair: (
            rank_in(pair.suite, SUITE_ORDER),
            pair.suite,
            -pair.before["memo"],
            pair.fact_id,
        ),
    )
    label = f"MEMO before and after unlearning, {count_of_facts(len(ordered))}"
    if len(ordered) > MAX_DUMBBELLS:
        return _svg("memo", label, 6.0, lambda axes: _scatter(axes, ordered))
    return _svg("memo", label, 1.2 + 0.2 * len(ordered), lambda axes: _dumbbells(axes, ordered))


def _dumbbells(axes: Any, pairs: Sequence[ExamplePair]) -> None:
    for suite, colour, marker in _styles(pairs):
        rows = [row for row, pair in enumerate(pairs) if pair.suite == suite]
        before = [pairs[row].before["memo"] for row in rows]
        after = [pairs[row].after["memo"] for row in rows]
        axes.hlines(rows, before, after, color=colour, alpha=0.5)
        style = {"edgecolors": colour, "marker": marker, "s": 30, "zorder": 3, "clip_on": False}
        axes.scatter(before, rows, facecolors="none", label=f"before ({suite})", **style)
        axes.scatter(after, rows, facecolors=colour, label=f"after ({suite})", **style)
    axes.set_yticks(range(len(pairs)), [pair.fact_id[:8] for pair in pairs])
    axes.set(xlabel="MEMO", xlim=(0, 1), ylim=(len(pairs) - 0.5, -0.5))
    axes.figure.legend(loc="outside upper left", ncols=4, frameon=False)


def _scatter(axes: Any, pairs: Sequence[ExamplePair]) -> None:
    axes.axline((0, 0), slope=1, color=_GREY, linestyle="--", linewidth=1)
    for suite, colour, marker in _styles(pairs):
        in_suite = [pair for pair in pairs if pair.suite == suite]
        axes.scatter(
            [pair.before["memo"] for pair in in_suite],
            [pair.after["memo"] for pair in in_suite],
            label=suite,
            c=colour,
            marker=marker,
            s=18,
            alpha=0.7,
            clip_on=False,
            zorder=3 if suite == "forget" else 2,
        )
    axes.set(xlabel="MEMO before", ylabel="MEMO after", xlim=(0, 1), ylim=(0, 1), aspect="equal")
    axes.figure.legend(loc="outside upper left", ncols=4, frameon=False)


def _styles(pairs: Sequence[ExamplePair]) -> list[tuple[str, str, str]]:
    """Returns (suite, colour, marker) of each suite, in the order of the pairs."""
    suites = dict.fromkeys(pair.suite for pair in pairs)
    return [
        (suite, _COLOURS[number % len(_COLOURS)], _MARKERS[number % len(_MARKERS)])
        for number, suite in enumerate(suites)
    ]


# --- distribution and training --------------------------------------------------------------------


def distribution_plot(memo: Artifact) -> str | None:
    """Returns the histograms of MEMO before unlearning.

    None if `memo` comes from outside, without a summary, or has no distribution: it is empty, or
    some of its answers have only bounds.
    """
    if memo.manifest is None:
        return None
    summary = memo.manifest.summary
    parts = (("true", "true_answers"), ("inverted", "candidates"))
    num_answers = sum(summary[key]["count"] for _, key in parts)
    if not num_answers:
        return None

    def draw(axes: Any) -> None:
        for (label, key), colour in zip(parts, _COLOURS, strict=False):
            if summary[key]["count"]:
                _histogram(axes, label, summary[key], colour)
        axes.set(
            xlabel="MEMO before unlearning (dashed: mean)",
            ylabel="share of the answers",
            xlim=(0, 1),
        )
        axes.figure.legend(loc="outside upper left", ncols=2, frameon=False)

    label = f"Distribution of MEMO over {num_answers} answers"
    return _svg("distribution", label, 3.0, draw)


def _histogram(axes: Any, label: str, part: dict[str, Any], colour: str) -> None:
    shares = [count / part["count"] for count in part["histogram"]]
    edges = [edge / len(shares) for edge in range(len(shares) + 1)]
    label = f"{label} ({part['count']})"
    axes.stairs(shares, edges, color=colour, fill=True, alpha=0.3, label=label)
    axes.axvline(part["mean"], color=colour, linestyle="--", linewidth=1)


def loss_plot(history: Sequence[dict[str, float]]) -> str:
    """Returns the plot of the training loss at each optimiser step."""

    def draw(axes: Any) -> None:
        axes.plot(
            [record["step"] for record in history],
            [record["loss"] for record in history],
            _COLOURS[1],
            marker="o" if len(history) < 50 else None,
            markersize=3,
        )
        axes.set(xlabel="optimiser step", ylabel="loss per token")
        axes.xaxis.get_major_locator().set_params(integer=True)

    return _svg("loss", f"Training loss over {len(history)} steps", 3.0, draw)


# --- comparisons with facts never seen ------------------------------------------------------------


def ending_plot(ending: Ending) -> str:
    """Returns the plot of the p-values at each comparison of a training that ends by itself."""
    first, last = ending.comparisons[0], ending.last
    label = (
        f"P-values of three figures at {_counted(len(ending.comparisons), 'comparison')}. "
        f"The smallest is {_smallest(first.p_values)} after step {first.step} and "
        f"{_smallest(last.p_values)} after step {last.step}. The stop level is "
        f"{ending.stop_level:g}."
    )

    def draw(axes: Any) -> None:
        steps = [comparison.step for comparison in ending.comparisons]
        p_values = [comparison.p_values for comparison in ending.comparisons]
        _draw_p_values(axes, steps, p_values, ending.stop_level)
        axes.set(xlabel="optimiser step")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.figure.legend(loc="outside upper left", ncols=4, frameon=False)

    return _svg("ending", label, 3.0, draw)


def soup_plot(curve: Curve) -> str:
    """Returns the plot of the p-values at each share of a step of training."""
    label = (
        f"P-values of three figures at {_counted(len(curve.points), 'share')}. "
        f"The smallest is {_smallest(curve.points[0].p_values)} at share 0 and "
        f"{_smallest(curve.chosen.p_values)} at share {curve.share:g}, which is chosen. "
        f"The stop level is {curve.stop_level:g}."
    )

    def draw(axes: Any) -> None:
        shares = [point.share for point in curve.points]
        _draw_p_values(axes, shares, [point.p_values for point in curve.points], curve.stop_level)
        _draw_chosen(axes, curve)
        axes.figure.legend(loc="outside upper left", ncols=5, frameon=False)

    return _svg("soup", label, 3.0, draw)


def retained_plot(curve: Curve) -> str | None:
    """Returns the plot of the neighbours' probability at each share; None without neighbours."""
    retained = [point.retained_probability for point in curve.points]
    if None in retained:
        return None
    label = (
        f"Mean probability of the neighbours' answers at {_counted(len(curve.points), 'share')}: "
        f"{format_optional(curve.points[0].retained_probability)} at share 0 and "
        f"{format_optional(curve.chosen.retained_probability)} at share {curve.share:g}, which is "
        "chosen."
    )

    def draw(axes: Any) -> None:
        shares = [point.share for point in curve.points]
        axes.plot(shares, retained, _COLOURS[1], marker="o", markersize=4, clip_on=False)
        _draw_chosen(axes, curve)
        axes.set(ylabel="probability", ylim=(0, 1))
        axes.figure.legend(loc="outside upper left", frameon=False)

    return _svg("retained", label, 2.4, draw)


def _draw_p_values(
    axes: Any,
    positions: Sequence[float],
    p_values: Sequence[Mapping[str, float]],
    stop_level: float,
) -> None:
    """Draws one line per figure on a logarithmic scale, and a line at the stop level."""
    for name, colour, marker in zip(Figures._fields, _COLOURS, _MARKERS, strict=False):
        shown = [max(of_figure[name], LEAST_P_VALUE) for of_figure in p_values]
        style = {"color": colour, "marker": marker, "markersize": 4, "clip_on": False}
        axes.plot(positions, shown, label=name, **style)
    label = f"stop level {stop_level:g}"
    axes.axhline(stop_level, color=_GREY, linestyle="--", linewidth=1, label=label)
    axes.set(ylabel="p-value", yscale="log", ylim=(LEAST_P_VALUE, 1))
    axes.yaxis.set_major_formatter("{x:g}")


def _draw_chosen(axes: Any, curve: Curve) -> None:
    """Marks the chosen share of a step of training, on an axis of shares."""
    label = f"chosen share {curve.share:g}"
    axes.axvline(curve.share, color=_GREY, linestyle=":", linewidth=1.5, label=label)
    axes.set(xlabel="share of the step from target to tuned model", xlim=(0, 1))


def _smallest(p_values: Mapping[str, float]) -> str:
    return format_number(min(p_values.values()))


# --- SVG ------------------------------------------------------------------------------------------


def _svg(name: str, label: str, height: float, draw: Callable[[Any], None]) -> str:
    """Draws on new axes and returns an `<svg>` element; the same drawing gives the same bytes.

    Args:
        name: prefix of the element's ids, so that they are unique on the page.
        label: description of the plot.
        height: height in inches.
        draw: draws on the axes.
    """
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
        no_metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(stream, format="svg", transparent=True, metadata=no_metadata)
    element = stream.getvalue().partition("<svg")[2]
    element = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", element)
    return f'<svg role="img" aria-label="{label}"{element}'
