"""What is trained on frozen features: a table of heads, each arrays in, arrays out.

The contract is docs/heads.md.
"""

import inspect
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType, NoneType, UnionType
from typing import Any, ClassVar, Literal, Protocol, Self, get_args, get_origin, get_type_hints

import numpy as np
import numpy.typing as npt

from probes.heads.abmil import AbmilHead
from probes.heads.affinity import AffinityHead
from probes.heads.boosting import XgboostHead
from probes.heads.cases import Cases
from probes.heads.decoder2d import Decoder2dHead
from probes.heads.decoder3d import Decoder3dHead
from probes.heads.knn import KnnHead
from probes.heads.linear import LinearHead, fit_linear
from probes.heads.linear2d import Linear2dHead
from probes.heads.logistic import LogisticHead

__all__ = [
    "DENSE_HEADS",
    "HEADS",
    "AbmilHead",
    "Cases",
    "DenseHead",
    "Head",
    "KnnHead",
    "LinearHead",
    "LogisticHead",
    "Setting",
    "XgboostHead",
    "fit_linear",
    "make_dense_head",
    "make_head",
    "parse_fields",
    "parse_settings",
]

Setting = bool | int | float | str | None
"""What a setting of a head can be; all of it goes into JSON."""


Validation = tuple[Any, npt.NDArray[Any]]
"""Features and targets of items that choose, and do not train."""


class Head(Protocol):
    """What every head does, in the manner of scikit-learn.

    The constructor takes keyword arguments only, annotated with types that text can be read
    as: `parse_settings` and `make_head` work from that signature.
    """

    takes: ClassVar[Literal["vectors", "bags"]]
    """Whether an item is one vector, or a bag of rows."""

    def __init__(self, **settings: Setting) -> None:
        """Check and keep the settings."""

    @property
    def selects(self) -> bool:
        """Whether, with these settings, something is chosen by validation items."""

    def fit(self, x: Any, y: npt.NDArray[Any], *, validation: Validation | None = None) -> Self:  # noqa: ANN401
        """Learn from features and targets (n_items, n_outputs) of 0 and 1.

        Features are (n_items, dim), or a sequence of bags (n_rows, dim).
        """

    def predict_proba(self, x: Any) -> npt.NDArray[np.float32]:  # noqa: ANN401
        """Return scores (n_items, n_outputs) float32 in [0, 1]."""

    def get_params(self) -> dict[str, Setting]:
        """Return the settings of the constructor."""

    def to_arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Return all that was learned."""

    @classmethod
    def from_arrays(cls, params: Mapping[str, Any], arrays: Mapping[str, npt.NDArray[Any]]) -> Self:
        """Restore a head from `get_params` and `to_arrays`; it predicts identically."""


HEADS: Mapping[str, type[Head]] = MappingProxyType(
    {
        "abmil": AbmilHead,
        "knn": KnnHead,
        "linear": LinearHead,
        "logistic": LogisticHead,
        "xgboost": XgboostHead,
    }
)


class DenseHead(Protocol):
    """What every head of maps does; see docs/heads.md, "Heads of maps"."""

    takes: ClassVar[Literal["maps"]]
    gives: ClassVar[Literal["classes", "affinities"]]
    """What `predict` yields."""

    def __init__(self, **settings: Setting) -> None:
        """Check and keep the settings."""

    @property
    def selects(self) -> bool:
        """Whether, with these settings, something is chosen by validation items."""

    def fit(
        self,
        cases: Cases,
        classes: int,
        *,
        overlapping: bool = False,
        validation: Cases | None = None,
        checkpoint: Path | None = None,
    ) -> Self:
        """Learn labels from maps."""

    def predict(self, cases: Cases, item: int) -> Iterator[tuple[int, npt.NDArray[np.float32]]]:
        """Yield (first row, probabilities or affinities) of an item's rows, in order."""

    def get_params(self) -> dict[str, Setting]:
        """Return the settings of the constructor."""

    def to_arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Return all that was learned."""

    @classmethod
    def from_arrays(cls, params: Mapping[str, Any], arrays: Mapping[str, npt.NDArray[Any]]) -> Self:
        """Restore a head from `get_params` and `to_arrays`; it predicts identically."""


DENSE_HEADS: Mapping[str, type[DenseHead]] = MappingProxyType(
    {
        "decoder2d": Decoder2dHead,
        "decoder3d": Decoder3dHead,
        "linear2d": Linear2dHead,
        "affinity": AffinityHead,
    }
)
_ALL: Mapping[str, type[Head] | type[DenseHead]] = MappingProxyType({**HEADS, **DENSE_HEADS})


def make_dense_head(name: str, **params: Setting) -> DenseHead:
    """Build a head of maps from the table; see `make_head`."""
    typed = _typed(name, params)
    if name not in DENSE_HEADS:
        raise ValueError(f"head {name} takes no maps; those that do: {', '.join(DENSE_HEADS)}")
    return DENSE_HEADS[name](**typed)


def make_head(name: str, **params: Setting) -> Head:
    """Build a head from the table.

    Args:
        name: A key of `HEADS`.
        **params: Settings of that head; what is not given keeps its default. Text is read as
            the setting's declared type, so ``lr="0.01"`` is ``lr=0.01``.

    Returns:
        A head, not fitted.

    Raises:
        ValueError: If the name or a setting is unknown, or a value is of another type or out of
            range.
    """
    typed = _typed(name, params)
    if name not in HEADS:
        raise ValueError(f"head {name} takes maps, not items; those that do: {', '.join(HEADS)}")
    return HEADS[name](**typed)


def _typed(name: str, params: Mapping[str, Setting]) -> dict[str, Setting]:
    """Return settings as their declared types; see `make_head`."""
    if name not in _ALL:
        raise ValueError(f"there is no head {name!r}; known heads: {', '.join(_ALL)}")
    return parse_fields(_ALL[name], f"head {name}", params)


def parse_fields(kind: type, whose: str, params: Mapping[str, Setting]) -> dict[str, Setting]:
    """Read settings as what the constructor of a class declares.

    Args:
        kind: Its constructor takes keyword arguments only, annotated.
        whose: Names it in messages, as ``head linear``.
        params: Values of these types, or text that can be read as such.

    Returns:
        What was given, each of its declared type.

    Raises:
        ValueError: If there is no such setting, or a value cannot be read.
    """
    declared = _declared_settings(kind)
    typed = {}
    for key, value in params.items():
        if key not in declared:
            raise ValueError(f"{whose} has no setting {key!r}; it has: {', '.join(declared)}")
        try:
            typed[key] = _read(value, declared[key])
        except ValueError as exc:
            raise ValueError(
                f"setting {key} of {whose} must be {_describe(declared[key])}, got {value!r}"
            ) from exc
    return typed


def parse_settings(name: str, texts: Iterable[str]) -> dict[str, Setting]:
    """Read settings written as ``key=value``.

    Args:
        name: A key of `HEADS` or `DENSE_HEADS`.
        texts: Settings of that head, such as ``lr=0.01``, ``standardize=false`` or
            ``temperature=none``.

    Returns:
        The settings that were given, each of its declared type and accepted by the head.

    Raises:
        ValueError: If a text is not ``key=value``, a key comes twice, or `make_head` refuses.
    """
    given: dict[str, Setting] = {}
    for text in texts:
        key, equals, value = (part.strip() for part in text.partition("="))
        if not (key and equals and value):
            raise ValueError(f"a setting is written key=value, got {text!r}")
        if key in given:
            raise ValueError(f"setting {key} is given twice: {given[key]} and {value}; keep one")
        given[key] = value
    make = make_dense_head if name in DENSE_HEADS else make_head
    params = make(name, **given).get_params()
    return {key: params[key] for key in given}


def _declared_settings(kind: type) -> dict[str, object]:
    """Return the declared type of each setting of a class."""
    constructor = kind.__init__  # type: ignore[misc]
    hints = get_type_hints(constructor)
    return {key: hints[key] for key in inspect.signature(constructor).parameters if key != "self"}


def _read(value: Setting, declared: object) -> Setting:
    """Return ``value`` as the declared type.

    Raises:
        ValueError: If it cannot be read so.
    """
    if get_origin(declared) is UnionType:
        return _read_first(value, get_args(declared))
    if get_origin(declared) is Literal and value in get_args(declared):
        return value
    if declared is NoneType and value in (None, "none"):
        return None
    if declared is bool and str(value).lower() in ("true", "false"):
        return str(value).lower() == "true"
    # A bool is an int to Python, but k=True is a mistake.
    if declared is int and isinstance(value, int | str) and not isinstance(value, bool):
        return int(value)
    if declared is float and isinstance(value, int | float | str) and not isinstance(value, bool):
        return float(value)
    if declared is str and isinstance(value, str):
        return value
    raise ValueError(f"{value!r} is not {_describe(declared)}")


def _read_first(value: Setting, declared: tuple[object, ...]) -> Setting:
    """Return ``value`` as the first of several types that it can be read as."""
    for option in declared:
        try:
            return _read(value, option)
        except ValueError:
            continue
    raise ValueError(f"{value!r} is none of them")


def _describe(declared: object) -> str:
    """Return the words for a declared type, as a person types its values."""
    if get_origin(declared) is UnionType:
        return " or ".join(_describe(option) for option in get_args(declared))
    if get_origin(declared) is Literal:
        return " or ".join(get_args(declared))
    words: dict[object, str] = {
        bool: "true or false",
        int: "a whole number",
        float: "a number",
        NoneType: "none",
    }
    return words.get(declared, "text")
