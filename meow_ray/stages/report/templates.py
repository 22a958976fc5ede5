"""The templates of the pages."""

from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

from meow_ray.core import storage
from meow_ray.core.formatting import format_optional
from meow_ray.stages.audit.reasons import explained
from meow_ray.stages.never_seen import Figures
from meow_ray.stages.report.plots import LEAST_P_VALUE

OWN = "meow_ray.stages.report"


def render(name: str, *, package: str = OWN, **values: Any) -> str:
    """Returns a template with values filled in, which are escaped.

    Args:
        name: file of the template.
        package: the package with the file; the templates of this one may be extended and included.
        **values: the values.
    """
    environment = Environment(
        loader=ChoiceLoader([PackageLoader(place, "") for place in dict.fromkeys((package, OWN))]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": format_optional,
        "display": storage.display,
        "explained": explained,
    }
    environment.globals |= {"figures": Figures._fields, "least_p_value": LEAST_P_VALUE}
    return environment.get_template(name).render(**values)
