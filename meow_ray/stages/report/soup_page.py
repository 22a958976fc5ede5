"""The page of `meow soup`: the curve from the target to the tuned model."""

from typing import Any

from meow_ray.stages.report import templates
from meow_ray.stages.report.plots import retained_plot, soup_plot
from meow_ray.stages.train.curve_file import Curve


def render(curve: Curve) -> str:
    """Returns the page as HTML that loads nothing; the same curve gives the same page."""
    return templates.render("soup.html.j2", **curve_parts(curve))


def curve_parts(curve: Curve | None) -> dict[str, Any]:
    """Returns the values of the template of the curve; all are None without a curve."""
    return {
        "curve": curve,
        "soup_plot": soup_plot(curve) if curve else None,
        "retained_plot": retained_plot(curve) if curve else None,
    }
