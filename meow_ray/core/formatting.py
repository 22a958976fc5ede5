"""How figures are printed in tables and on the report's page."""


def format_number(value: float) -> str:
    """Returns a figure with three decimals; below 0.001, in scientific notation."""
    return f"{value:.3f}" if abs(value) >= 0.001 or value == 0 else f"{value:.1e}"


def format_optional(value: float | None) -> str:
    """Returns a figure as `format_number` does; a dash for None."""
    return "–" if value is None else format_number(value)
