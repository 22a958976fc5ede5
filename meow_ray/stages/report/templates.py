"""The templates of the pages."""

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from meow_ray.core import storage
from meow_ray.core.formatting import format_optional
from meow_ray.stages.never_seen import Figures
from meow_ray.stages.report.plots import LEAST_P_VALUE


def render(name: str, **values: Any) -> str:
    """Returns a template of this folder with values filled in, which are escaped."""
    environment = Environment(
        loader=PackageLoader("meow_ray.stages.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": format_optional, "display": storage.display}
    environment.globals |= {"figures": Figures._fields, "least_p_value": LEAST_P_VALUE}
    return environment.get_template(name).render(**values)
