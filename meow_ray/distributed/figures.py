"""Figures that a stage shows while it runs, such as its mean MEMO or its generated tokens."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    """A mean or a total over rows; figures of several batches can be added."""

    amount: float
    """The sum of the values."""
    count: int | None
    """The number of values in a mean; None for a total."""

    @classmethod
    def mean(cls, amount: float, count: int) -> "Figure":
        """Returns the mean of `count` values whose sum is `amount`."""
        return cls(amount, count)

    @classmethod
    def total(cls, amount: float) -> "Figure":
        """Returns a total."""
        return cls(amount, None)

    def __add__(self, other: "Figure") -> "Figure":
        """Returns the figure over the rows of both."""
        if self.count is None or other.count is None:
            assert self.count is other.count, "a mean and a total cannot be added"
            return Figure.total(self.amount + other.amount)
        return Figure.mean(self.amount + other.amount, self.count + other.count)

    @property
    def value(self) -> float | None:
        """Returns the number to show; None for a mean of no values and for a total of 0."""
        if self.count is None:
            return float(self.amount) if self.amount else None
        return self.amount / self.count if self.count else None


Figures = dict[str, Figure]
"""Figures by name."""
