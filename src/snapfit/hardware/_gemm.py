"""Products on one GPU: NVIDIA's table where it has the point, and a model between its points.

Between grid points every law of `_tiles` is scaled so that it meets the table at the points
around, and the laws that need the least scaling differences there speak loudest: where the table
itself shows the waves of 128 x 256 tiles, the cliff lies where such tiles begin another wave.

Letters: L laws; P grid points around; a, b, c those along M, N and K.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import hypot

import numpy as np
from numpy.typing import NDArray

from snapfit.core.errors import SnapfitError
from snapfit.core.operators import Estimate, Linear
from snapfit.hardware._gpus import Gpu
from snapfit.hardware._tables import DTYPES, GemmTable, gemm_table
from snapfit.hardware._tiers import STREAM_IN, STREAM_OUT, tier_name, tiers_of
from snapfit.hardware._tiles import Laws, TileModel

AGREEMENT = 0.03
"""Laws whose fit to the points around differs by more than this (rms of log) are told apart."""

CERTAIN = 0.02
"""A law that fits so well (rms of log) is believed alone."""

HELD_OUT = {"m": 0.05, "n": 0.06, "k": 0.04}
"""Median error where every second grid point of an axis is left out, the worst GPU
(`benchmarks/a100_model.py`)."""

UNANCHORED = 0.15
"""Error of the model where no table says the level."""

TIER_ERROR = 0.05
FLOAT8_MULTIPLE = 16


@dataclass(frozen=True, kw_only=True)
class Side:
    """Grid points around a size along one axis.

    Attributes:
        places: their indices.
        near: weights of the interpolation, 0 for points further off.
        fit: weights in judging the laws.
        beyond: how far outside the grid the size lies, in log; 0 inside.

    """

    places: NDArray[np.int64]
    near: NDArray[np.float64]
    fit: NDArray[np.float64]
    beyond: float

    @property
    def exact(self) -> bool:
        """Whether the grid has the size itself."""
        return len(self.places) == 1 and not self.beyond


def side(grid: NDArray[np.int64], size: int) -> Side:
    """The points around `size` on a sorted grid, two on each side."""
    one = np.ones(1)
    place = int(np.searchsorted(grid, size))
    if place < len(grid) and grid[place] == size:
        return Side(places=np.array([place]), near=one, fit=one, beyond=0.0)
    if place in {0, len(grid)}:
        edge = min(place, len(grid) - 1)
        beyond = abs(float(np.log(size / grid[edge])))
        return Side(places=np.array([edge]), near=one, fit=one, beyond=beyond)
    places = np.arange(max(place - 2, 0), min(place + 2, len(grid)))
    low, high = grid[place - 1], grid[place]
    share = float(np.log(size / low) / np.log(high / low))
    near = np.where(places == place - 1, 1 - share, np.where(places == place, share, 0.0))
    fit = np.where((places == place - 1) | (places == place), 1.0, 0.5)
    return Side(places=places, near=near, fit=fit, beyond=0.0)


@dataclass(frozen=True, kw_only=True)
class GemmModel:
    """Products on `gpu` with weights of `dtype`.

    Attributes:
        gpu: the GPU.
        dtype: 'float16', 'bfloat16' or 'float8'.
        table: None where NVIDIA publishes none.

    """

    gpu: Gpu
    dtype: str
    table: GemmTable | None

    @classmethod
    def of(cls, gpu: Gpu, dtype: str) -> GemmModel:
        """The model of a GPU, with its table.

        Raises:
            SnapfitError: the GPU has no such kernels, or its table cannot be read.

        """
        if dtype not in DTYPES:
            raise SnapfitError(
                f"the model of {gpu.name} times {', '.join(DTYPES)}, not {dtype}; "
                "profile the device itself with 'snapfit profile'"
            )
        if dtype == "float8" and gpu.flops8 is None:
            raise SnapfitError(f"{gpu.name} has no 8-bit float tensor cores; choose bfloat16")
        return cls(gpu=gpu, dtype=dtype, table=gemm_table(gpu, dtype))

    @cached_property
    def tiles(self) -> TileModel:
        """The physical model behind it."""
        if self.dtype == "float8":
            assert self.gpu.flops8 is not None
            return TileModel(gpu=self.gpu, flops=self.gpu.flops8, itemsize=1)
        return TileModel(gpu=self.gpu, flops=self.gpu.flops, itemsize=2)

    def time(self, operator: Linear) -> Estimate:
        """The time of one product, kernel and launch."""
        m, n, k = operator.m, operator.n, operator.k
        note = ""
        if self.dtype == "float8" and (n % FLOAT8_MULTIPLE or k % FLOAT8_MULTIPLE):
            n, k = (-(-size // FLOAT8_MULTIPLE) * FLOAT8_MULTIPLE for size in (n, k))
            note = f"; padded to multiples of {FLOAT8_MULTIPLE}, the only ones that FP8 takes"
        if self.table is None:
            return self._unanchored(m, n, k)
        table = self.table
        sides = [self._side(0, m), self._side(1, n), self._side(2, k)]
        time, spread, laws = self._anchored(m, n, k, sides)
        factor, tier = self._tier(m, n, k, laws)
        if all(s.exact for s in sides) and spread == 0 and factor == 1:
            return Estimate(
                microseconds=time, spread=0.02, source="table" if not note else "model",
                how=table.label + note,
            )  # fmt: skip
        off = [axis for axis, s in zip("MNK", sides, strict=True) if not s.exact]
        how = f"{table.label}, {' and '.join(off)} between its points" if off else table.label
        return Estimate(
            microseconds=time * factor,
            spread=hypot(spread, TIER_ERROR if factor > 1 else 0.0),
            source="model",
            how=how + tier + note,
        )

    def _unanchored(self, m: int, n: int, k: int) -> Estimate:
        laws = self._laws(m, n, k)
        time = float(laws.times_LX[0])
        factor, tier = self._tier(m, n, k, laws)
        return Estimate(
            microseconds=time * factor,
            spread=UNANCHORED + (TIER_ERROR if factor > 1 else 0.0),
            source="model",
            how=f"tiles and waves of {self.gpu.name} at its peak rates; NVIDIA has no table{tier}",
        )

    def _laws(self, m: int, n: int, k: int) -> Laws:
        return self.tiles.laws(np.array(float(m)), np.array(float(n)), np.array(float(k)))

    def _anchored(
        self, m: int, n: int, k: int, sides: list[Side]
    ) -> tuple[float, float, Laws | None]:
        """Microseconds of an aligned kernel, and the relative error to expect.

        On the grid the error is 0 and the laws are not asked.
        """
        assert self.table is not None
        exact = all(s.exact for s in sides)
        m_a, n_b, k_c = (slice(s.places[0], s.places[-1] + 1) for s in sides)
        if exact:
            time = float(self.table.times_mnk[m_a, n_b, k_c][0, 0, 0])
            if not np.isnan(time):
                return time, 0.0, None
        laws = self._laws(m, n, k)
        laws_L = np.log(laws.times_LX)
        planes = [self._offsets(int(place))[:, n_b, k_c] for place in sides[0].places]
        off_LP = np.stack(planes, axis=1).reshape(len(laws_L), -1)
        there_P = ~np.isnan(off_LP[0])
        fit_P = _outer(*(s.fit for s in sides)) * there_P
        if not there_P.any():
            return float(np.exp(laws_L[0])), UNANCHORED, laws
        near_P = _outer(*(s.near for s in sides)) * there_P
        if not near_P.any():
            near_P = fit_P
        off_LP = np.where(there_P, off_LP, 0.0)
        near_L, mean_L = (off_LP @ (weights / weights.sum()) for weights in (near_P, fit_P))
        misfit_L = (off_LP - mean_L[:, None]) ** 2 @ (fit_P / fit_P.sum())
        voice_L = np.exp(-(misfit_L - misfit_L.min()) / (2 * AGREEMENT**2))
        if misfit_L.min() < CERTAIN**2:
            # A mean of two staircases would be one with steps that neither has.
            voice_L = (misfit_L == misfit_L.min()).astype(float)
        time = float(np.exp((laws_L + near_L) @ (voice_L / voice_L.sum())))
        errors = [
            HELD_OUT[axis] * (not s.exact) + UNANCHORED * min(s.beyond, 2.0)
            for axis, s in zip("mnk", sides, strict=True)
        ]
        return time, hypot(*errors), laws

    def _side(self, axis: int, size: int) -> Side:
        found = self._sides.get((axis, size))
        if found is None:
            assert self.table is not None
            grid = (self.table.m, self.table.n, self.table.k)[axis]
            found = self._sides[axis, size] = side(grid, size)
        return found

    @cached_property
    def _sides(self) -> dict[tuple[int, int], Side]:
        return {}

    def _offsets(self, place: int) -> NDArray[np.float64]:
        """Log of table over each law at one M of the grid, (L, N, K); kept."""
        if place not in self._planes:
            assert self.table is not None
            table = self.table
            n_NK, k_NK = np.meshgrid(table.n.astype(float), table.k.astype(float), indexing="ij")
            laws_LNK = self.tiles.laws(np.full_like(n_NK, table.m[place]), n_NK, k_NK).times_LX
            self._planes[place] = np.log(table.times_mnk[place]) - np.log(laws_LNK)
        return self._planes[place]

    @cached_property
    def _planes(self) -> dict[int, NDArray[np.float64]]:
        return {}

    def _tier(self, m: int, n: int, k: int, laws: Laws | None) -> tuple[float, str]:
        """What the published kernel tiers make of an aligned time, and in words."""
        if self.dtype == "float8" or laws is None or (n % 16 == 0 and k % 16 == 0):
            return 1.0, ""
        tiers = tiers_of(self.gpu.capability)
        # A product with one vector has no tensor-core kernel to lose.
        slower = tiers.factor(n, k) if m > 1 else 1.0
        stream = max(STREAM_IN if k % 8 else 1.0, STREAM_OUT if n % 8 else 1.0)
        arithmetic, traffic = float(laws.arithmetic_X), float(laws.traffic_X)
        launch = self.tiles.kernels.launch
        aligned = launch + max(arithmetic, traffic)
        factor = (launch + max(arithmetic * slower, traffic * stream)) / aligned
        borrowed = "" if tiers.gpu == self.gpu.name else f" borrowed from {tiers.gpu}"
        worse = min(((n, "N"), (k, "K")), key=lambda pair: pair[0] & -pair[0])
        return factor, f", x{factor:.2f} as {worse[1]} is {tier_name(worse[0])}{borrowed}"


def _outer(
    a: NDArray[np.float64], b: NDArray[np.float64], c: NDArray[np.float64]
) -> NDArray[np.float64]:
    product: NDArray[np.float64] = (a[:, None, None] * b[:, None] * c).ravel()
    return product
