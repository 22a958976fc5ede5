"""The file of the curve that `meow soup` measures."""

from dataclasses import asdict, dataclass

from pydantic import TypeAdapter, ValidationError

from meow_ray.core import storage
from meow_ray.errors import MeowError
from meow_ray.stages.train.curve import Point

CURVE_FILE = "soup.json"
"""The curve, next to the weights of the chosen model."""


@dataclass(frozen=True)
class Curve:
    """The curve from the target to the tuned model, and the share that was chosen on it."""

    share: float
    """The smallest share above 0 at which the facts look never seen."""
    stop_level: float
    """The p-value that all figures have to exceed."""
    points: list[Point]
    """By ascending share; the first one is the target."""
    inputs: dict[str, str]
    """The digests of the artifacts that were read, by name."""

    @property
    def chosen(self) -> Point:
        """The point at the chosen share."""
        return next(point for point in self.points if point.share == self.share)


def write(curve: Curve, folder: str) -> None:
    """Writes a curve into the folder of a model."""
    storage.write_json(storage.join(folder, CURVE_FILE), asdict(curve))


def read(uri: str) -> Curve:
    """Returns the curve in a file.

    Raises:
        MeowError: the file cannot be read, or holds no curve.
    """
    try:
        return TypeAdapter(Curve).validate_python(storage.read_json(uri))
    except ValidationError as error:
        raise MeowError(
            f"{storage.display(uri)}: not a curve of `meow soup` ({error.error_count()} mistakes). "
            "Name a folder that the command wrote."
        ) from None
