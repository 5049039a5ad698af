"""What makes features small: an offset a channel, a basis (PCA), a scale a channel (int8).

Fitted once on a sample, then frozen: see docs/store-format.md, "Calibration". What it costs is
measured on other items of the same sample and stands beside it.
"""

import base64
import binascii
import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, ValidationError

from dinocache import documents
from dinocache.errors import RequestError, StoreDamagedError
from dinocache.layout import ABSENT_CODE, fitted_document
from dinocache.recipe import FormRecipe

__all__ = ["LARGEST_CODE", "NEIGHBOURS", "Calibration", "Cost", "Sample", "by_hash", "made_small"]

LARGEST_CODE = 127
"""-128 stands where nothing is."""
NEIGHBOURS = 10
_SHRINKS = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.15, 0.1, 0.07, 0.05, 0.03)
_ROOM = 4.0
_MOST_QUERIES = 1024
_SMALLEST_SCALE = 1e-12
_MOST_NUMBERS = 1 << 26

Floats = npt.NDArray[np.float32]


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Cost(_Document):
    """What was lost, on a sample.

    Attributes:
        items: How many the sample is of.
        vectors: How many vectors it has: of rows, or of patches.
        held_out: Whether they are of other items than those fitted on.
        cosine: Mean cosine between a vector and what is read back of it, a basis undone.
        cosine_least: The least of them.
        relative_error: Norm of all differences over the norm of all vectors.
        neighbours: Of the 10 nearest by cosine, among the sample, the share that stays the same;
            None where there are too few.
        nearest: Share of vectors whose nearest stays the same; likewise.
        variance: Share of the variance that the basis keeps; None without one.
        clipped: Share of numbers beyond what int8 holds; None without int8.
    """

    items: int
    vectors: int
    held_out: bool
    cosine: float
    cosine_least: float
    relative_error: float
    neighbours: float | None
    nearest: float | None
    variance: float | None
    clipped: float | None


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Vectors that are fitted on, and those that the loss is measured on.

    Attributes:
        fitted: (n_vectors, dim).
        measured: (m_vectors, dim); the same where there is but one item.
        fitted_items: How many items the first are of.
        measured_items: Likewise.
        held_out: Whether these are other items.
    """

    fitted: Floats
    measured: Floats
    fitted_items: int
    measured_items: int
    held_out: bool


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What makes features of a kind small, and back.

    A vector x becomes z = (x - offset) @ basis, or x - offset without a basis, and with int8
    round(z / scale), cut at -127 and 127.

    Attributes:
        kind: Of which.
        recipe: Digest of the store's recipe.
        offset: (dim,) the mean of the sample.
        basis: (dim, components), orthonormal columns, the largest variance first; or None.
        scale: (components or dim,); None where z is kept as floats.
        fitted_items: How many items the sample has that it was fitted on.
        fitted_vectors: And vectors.
        cost: What is lost.
    """

    kind: str
    recipe: str
    offset: Floats
    basis: Floats | None
    scale: Floats | None
    fitted_items: int
    fitted_vectors: int
    cost: Cost

    @classmethod
    def fit(
        cls,
        kind: str,
        recipe: str,
        form: FormRecipe,
        sample: Sample,
        *,
        like: "Calibration | None" = None,
    ) -> Self:
        """Fit on a sample, and measure what is lost.

        Args:
            kind: Of the features.
            recipe: Digest.
            form: How they are to be kept.
            sample: Of the features.
            like: What is taken instead of being fitted; its cost is measured on the sample.

        Raises:
            RequestError: If the sample is too small for so many components.
        """
        if like is None:
            x = sample.fitted
            offset = x.mean(0, dtype=np.float64).astype(np.float32)
            basis = None if form.pca is None else _basis(kind, x - offset, form.pca)
            z: Floats = made_small(x, offset, basis, None)
            made = cls(
                kind=kind,
                recipe=recipe,
                offset=offset,
                basis=basis,
                scale=_scale(z) if form.dtype == "int8" else None,
                fitted_items=sample.fitted_items,
                fitted_vectors=len(x),
                cost=_NOT_MEASURED,
            )
        else:
            made = cls(**{**vars(like), "kind": kind, "recipe": recipe})
            sample = replace(sample, held_out=True)
        return replace(made, cost=made._measure(sample, form))

    @property
    def basis_digest(self) -> str | None:
        """Tell components of one basis from those of another; None where no basis is."""
        if self.basis is None:
            return None
        return hashlib.sha256(self.offset.tobytes() + self.basis.tobytes()).hexdigest()[:32]

    def codes(self, x: Any) -> Any:  # noqa: ANN401 - NumPy's array, or torch's tensor
        """Make features small, as floats that are to be rounded to the store's type.

        Args:
            x: (..., dim) float32: NumPy's, or torch's with `offset`, `basis` and `scale` of it.

        Returns:
            (..., components or dim): of int8 whole numbers, which may be beyond 127.
        """
        return made_small(x, self.offset, self.basis, self.scale)

    def small(self, x: Floats, form: FormRecipe) -> tuple[npt.NDArray[Any], int]:
        """Make features small.

        Args:
            x: (n, ..., dim); rows of NaN are those of which nothing is.
            form: How they are kept.

        Returns:
            ((n, ..., components or dim) of the form's type, how many numbers were cut off).
        """
        codes: Floats = self.codes(np.asarray(x, np.float32))
        if self.scale is None:
            return codes.astype(form.dtype), 0
        clipped = int((np.abs(codes) > LARGEST_CODE).sum())
        nothing = np.isnan(codes)
        codes = np.where(nothing, ABSENT_CODE, codes.clip(-LARGEST_CODE, LARGEST_CODE))
        return codes.astype(np.int8), clipped

    def read_into(self, block: Floats, stored: npt.NDArray[np.int8]) -> None:
        """Give int8 their scale, and without a basis their offset back.

        Args:
            block: (n, ..., channels), filled.
            stored: Of the same shape.

        Raises:
            StoreDamagedError: If nothing is in some of them.
        """
        if (stored == ABSENT_CODE).any():
            raise StoreDamagedError(
                f"{self.kind}: committed rows hold numbers that say that nothing is there; run "
                "`dinocache verify`"
            )
        scale = np.ones(1, np.float32) if self.scale is None else self.scale
        np.multiply(stored, scale, out=block, dtype=np.float32)
        if self.basis is None:
            block += self.offset

    def undone(self, z: Floats) -> Floats:
        """Bring what is read from a store back to the encoder's channels.

        Args:
            z: (..., components or dim), as `FeatureStore.rows` gives it.

        Returns:
            (..., dim): with a basis, what its components hold.
        """
        if self.basis is not None:
            return z.astype(np.float32) @ self.basis.T + self.offset
        # Without a basis int8 have their offset already.
        return z.astype(np.float32)

    def _measure(self, sample: Sample, form: FormRecipe) -> Cost:
        x = sample.measured
        stored, clipped = self.small(x, form)
        if self.scale is None:
            read = stored.astype(np.float32)
        else:
            read = np.empty(stored.shape, np.float32)
            self.read_into(read, stored)
        back = self.undone(read).astype(np.float64)
        wide = x.astype(np.float64)
        norms = np.linalg.norm(wide, axis=1) * np.linalg.norm(back, axis=1)
        cosines = (wide * back).sum(1) / np.maximum(norms, np.finfo(np.float64).tiny)
        total = np.linalg.norm(wide)
        same = _same_neighbours(x, read)
        around = np.linalg.norm(wide - self.offset)
        left = np.linalg.norm(wide - self.undone(self._projected(x)))
        return Cost(
            items=sample.measured_items,
            vectors=len(x),
            held_out=sample.held_out,
            cosine=float(cosines.mean()),
            cosine_least=float(cosines.min()),
            relative_error=float(np.linalg.norm(wide - back) / total) if total else 0.0,
            neighbours=None if same is None else same[0],
            nearest=None if same is None else same[1],
            variance=None if self.basis is None or not around else float(1 - (left / around) ** 2),
            clipped=None if self.scale is None else clipped / stored.size,
        )

    def _projected(self, x: Floats) -> Floats:
        return x if self.basis is None else made_small(x, self.offset, self.basis, None)

    # As a document

    def encode(self) -> bytes:
        """Make the bytes of `calibration/<kind>.json`."""
        arrays = {"offset": self.offset, "basis": self.basis, "scale": self.scale}
        body: documents.Body = {
            "kind": self.kind,
            "recipe": self.recipe,
            "fitted_items": self.fitted_items,
            "fitted_vectors": self.fitted_vectors,
            "cost": self.cost.model_dump(mode="json"),
            **{name: None if a is None else _text_of(a) for name, a in arrays.items()},
        }
        return documents.encode(body)

    @classmethod
    def decode(cls, content: bytes, name: str, *, form: FormRecipe, dim: int) -> Self:
        """Read it back.

        Args:
            content: The file's bytes.
            name: The file, for messages.
            form: That the recipe asks for.
            dim: Channels that the encoder gives.

        Returns:
            The calibration.

        Raises:
            StoreDamagedError: If it is not as it was written, or not for such features.
        """
        body = documents.decode(content, name)
        width = form.pca or dim
        shapes = {
            "offset": (dim,),
            "basis": (dim, width) if form.pca else None,
            "scale": (width,) if form.dtype == "int8" else None,
        }
        try:
            arrays = {key: _array_of(body[key], shape) for key, shape in shapes.items()}
            counts = body["fitted_items"], body["fitted_vectors"]
            if not all(type(n) is int and n > 0 for n in counts):
                raise ValueError("it was fitted on nothing")
            if arrays["offset"] is None or not isinstance(body["kind"], str):
                raise ValueError("it has no offset")
            if arrays["scale"] is not None and (arrays["scale"] <= 0).any():
                raise ValueError("a scale is not above 0")
            return cls(
                kind=body["kind"],
                recipe=str(body["recipe"]),
                fitted_items=counts[0],
                fitted_vectors=counts[1],
                cost=Cost.model_validate(body["cost"]),
                offset=arrays["offset"],
                basis=arrays["basis"],
                scale=arrays["scale"],
            )
        except (KeyError, TypeError, ValueError, ValidationError) as exc:
            raise StoreDamagedError(
                f"{name} is no calibration of {dim} channels kept as {form} ({exc})"
            ) from exc

    def zarr_files(self) -> dict[str, bytes]:
        """Give the same arrays for whoever reads the store by Zarr alone: path -> bytes."""
        files = fitted_document(f"{self.kind}_offset", self.offset)
        if self.basis is not None:
            files |= fitted_document(f"{self.kind}_basis", self.basis)
        if self.scale is not None:
            files |= fitted_document(f"{self.kind}_scale", self.scale)
        return files


def made_small(x: Any, offset: Any, basis: Any, scale: Any) -> Any:  # noqa: ANN401
    """See `Calibration.codes`; all of NumPy, or all of torch."""
    z = x - offset
    if basis is not None:
        z = z @ basis
    return z if scale is None else (z / scale).round()


def by_hash(item_ids: Iterable[str]) -> list[str]:
    """Give ids in the order of a hash of them: the same whenever it is asked."""
    return sorted(item_ids, key=lambda i: hashlib.sha256(i.encode()).digest())


_NOT_MEASURED = Cost(
    items=0,
    vectors=0,
    held_out=False,
    cosine=0,
    cosine_least=0,
    relative_error=0,
    neighbours=None,
    nearest=None,
    variance=None,
    clipped=None,
)


def _basis(kind: str, centred: Floats, components: int) -> Floats:
    """Give the directions of the largest variance, (dim, components); signs are fixed."""
    count, dim = centred.shape
    if components > min(dim, count - 1):
        raise RequestError(
            f"--pca {components}: {kind} has {dim} channels, and {count} vectors of it were "
            f"sampled; give at most {max(min(dim, count - 1), 1)}, or --pca {components}:dense "
            "for the maps alone"
        )
    wide = centred.astype(np.float64)
    _, vectors = np.linalg.eigh(wide.T @ wide)
    basis = vectors[:, ::-1][:, :components]
    largest = np.abs(basis).argmax(0)
    signed: Floats = (basis * np.sign(basis[largest, np.arange(components)])).astype(np.float32)
    return signed


def _scale(z: Floats) -> Floats:
    """Choose each channel's scale: of some shrinks of its range that with the least error.

    The mean of the error's magnitude counts, not its square, with which a few far numbers would
    cost all others their steps. A small sample has seen less than the whole range, so it is given
    some room.
    """
    full = np.abs(z).max(0) / LARGEST_CODE
    full = np.maximum(full, _SMALLEST_SCALE).astype(np.float32)
    best: Floats = full
    least = np.full(full.shape, np.inf)
    for shrink in _SHRINKS:
        scale = full * np.float32(shrink)
        codes = (z / scale).round().clip(-LARGEST_CODE, LARGEST_CODE)
        error = np.abs(z - codes * scale).sum(0, dtype=np.float64)
        best = np.where(error < least, scale, best)
        least = np.minimum(error, least)
    return best * np.float32(1 + _ROOM / math.sqrt(len(z)))


def _same_neighbours(x: Floats, read: Floats) -> tuple[float, float] | None:
    """Compare nearest neighbours by cosine, as `knn` finds them, before and after."""
    if len(x) <= NEIGHBOURS + 1:
        return None
    queries = np.linspace(0, len(x) - 1, min(len(x), _MOST_QUERIES)).round().astype(np.intp)
    ours, theirs = (_nearest(values, queries) for values in (x, read))
    shared = [len(set(a) & set(b)) for a, b in zip(ours.tolist(), theirs.tolist(), strict=True)]
    return float(np.mean(shared) / NEIGHBOURS), float((ours[:, 0] == theirs[:, 0]).mean())


def _nearest(values: Floats, queries: npt.NDArray[np.intp]) -> npt.NDArray[np.intp]:
    """Number the nearest of all vectors of some of them, themselves left out, the first first."""
    norms = np.linalg.norm(values, axis=1, keepdims=True)
    unit: Floats = values / np.maximum(norms, np.finfo(np.float32).tiny)
    similar = unit[queries] @ unit.T
    similar[np.arange(len(queries)), queries] = -np.inf
    order: npt.NDArray[np.intp] = np.argsort(-similar, axis=1, kind="stable")[:, :NEIGHBOURS]
    return order


def _text_of(values: Floats) -> documents.Body:
    raw = np.ascontiguousarray(values, "<f4").tobytes()
    return {"shape": list(values.shape), "float32": base64.b64encode(raw).decode()}


def _array_of(body: Any, shape: tuple[int, ...] | None) -> Floats | None:  # noqa: ANN401
    if shape is None:
        if body is not None:
            raise ValueError("it has an array that such features do not need")
        return None
    if body["shape"] != list(shape) or math.prod(shape) > _MOST_NUMBERS:
        raise ValueError(f"an array is {body['shape']}, {list(shape)} was expected")
    try:
        raw = base64.b64decode(body["float32"], validate=True)
    except binascii.Error as exc:
        raise ValueError("an array is no base64") from exc
    values: Floats = np.frombuffer(raw, "<f4").reshape(shape)
    if not np.isfinite(values).all():
        raise ValueError("an array has numbers that are not finite")
    return values
