"""How long a matrix product should take: tiles, waves, memory and launch.

A kernel cuts the (M, N) output into tiles and spreads them over the multiprocessors in waves, so
time is a staircase in M and N and a line in K. A library picks one of a few tile sizes. Six
numbers a generation, the same for all its GPUs, say what share of the peak a kernel reaches. They
were calibrated once on NVIDIA's table of one GPU each (A100, L40S, H100, B200, RTX PRO 6000), by a
random search for the least mean error of log; alone they are 5 to 13% off, on GPUs of the same
generation that they never saw as well (H200: 5 to 8%). The level of every answer comes from the
table itself.

Letters: X any shape of shapes, T tile sizes, L laws.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from snapfit.hardware._gpus import Gpu

Sizes = NDArray[np.float64]
Times = NDArray[np.float64]

LAWS = ("tiles", "roofline", "128x256", "128x128")

# (rows, columns, tiles that one multiprocessor works on at a time)
_WARP_TILES = (
    *((128, 256, 1), (256, 128, 1), (128, 128, 2), (64, 256, 2), (256, 64, 2), (128, 64, 2)),
    *((64, 128, 2), (64, 64, 2), (128, 32, 2), (64, 32, 2), (32, 64, 2), (16, 64, 2)),
)
_WARPGROUP_TILES = tuple(
    (rows, columns, 1)
    for rows in (64, 128, 256)
    for columns in (16, 32, 64, 96, 128, 160, 192, 224, 256)
    if rows * columns <= 256 * 128
)
_SINGLE = ((128, 256, 1), (128, 128, 2))
_SPLITS = (2, 3, 4, 8)

SHARED = 0.8
"""Of two tiles on one multiprocessor: time of the pair over twice the time of one alone."""

SPLIT_PAUSE = 1.0
"""Microseconds that adding up partial sums takes beside its traffic."""


@dataclass(frozen=True, kw_only=True)
class Generation:
    """What kernels of one generation of GPUs reach.

    Attributes:
        reach: share of the peak rate in the inner loop.
        balance: half-precision operations in the time that a byte takes from the second-level
            cache.
        wave: microseconds lost a wave.
        launch: microseconds of an empty kernel.
        stream: share of the memory bandwidth.
        ramp: features of K that filling the pipeline is worth.
        tiles: (rows, columns, tiles at a time) that its libraries choose from.

    """

    reach: float
    balance: float
    wave: float
    launch: float
    stream: float
    ramp: float
    tiles: tuple[tuple[int, int, int], ...]


def generation(capability: int) -> Generation:
    """The generation of a compute capability, 10 x major + minor."""
    if capability >= 120:
        return Generation(
            reach=0.865, balance=36, wave=0.75, launch=1.4, stream=0.80, ramp=70, tiles=_WARP_TILES
        )
    if capability >= 100:
        return Generation(
            reach=0.74, balance=78, wave=0.1, launch=2.2, stream=0.72, ramp=25,
            tiles=_WARPGROUP_TILES,
        )  # fmt: skip
    if capability >= 90:
        return Generation(
            reach=0.85, balance=54, wave=0.24, launch=2.5, stream=0.78, ramp=95,
            tiles=_WARPGROUP_TILES,
        )  # fmt: skip
    if capability >= 89:
        return Generation(
            reach=0.64, balance=48, wave=0.7, launch=1.1, stream=0.79, ramp=30, tiles=_WARP_TILES
        )
    return Generation(
        reach=0.90, balance=57, wave=0.54, launch=3.6, stream=0.68, ramp=100, tiles=_WARP_TILES
    )


@dataclass(frozen=True, kw_only=True)
class Laws:
    """Microseconds of products by several laws.

    Attributes:
        times_LX: by each of `LAWS`, launch included.
        arithmetic_X: of the best tile, without traffic or launch.
        traffic_X: of moving operands and result once.

    """

    times_LX: Times
    arithmetic_X: Times
    traffic_X: Times


@dataclass(frozen=True, kw_only=True)
class TileModel:
    """Products on one GPU with elements of `itemsize` bytes at a peak of `flops` a microsecond."""

    gpu: Gpu
    flops: float
    itemsize: int

    @cached_property
    def kernels(self) -> Generation:
        """What its kernels reach."""
        return generation(self.gpu.capability)

    def laws(self, m_X: Sizes, n_X: Sizes, k_X: Sizes) -> Laws:
        """What each of `LAWS` says.

        The best tile of all, no tiles at all, and two single tile sizes that libraries often
        stay with where a better one exists.
        """
        by_tile_XT = self._by_tile(m_X, n_X, k_X)
        singles = len(_SINGLE)
        arithmetic_X = by_tile_XT[..., :-singles].min(axis=-1)
        smooth_X = 2.0 * m_X * n_X * k_X / (self.flops * self.kernels.reach)
        moved_X = self.itemsize * (1.0 * m_X * k_X + 1.0 * n_X * k_X + 1.0 * m_X * n_X)
        traffic_X = moved_X / (self.gpu.bandwidth * self.kernels.stream)
        alone_LX = np.moveaxis(by_tile_XT[..., -singles:], -1, 0)
        stacked_LX = np.concatenate([arithmetic_X[None], smooth_X[None], alone_LX])
        return Laws(
            times_LX=self.kernels.launch + np.maximum(stacked_LX, traffic_X),
            arithmetic_X=arithmetic_X,
            traffic_X=traffic_X,
        )

    @cached_property
    def _tiles_T(self) -> tuple[Times, Times, Times, Times]:
        """Rows, columns, how many at a time, and microseconds of one a feature of K."""
        rows_T, columns_T, beside_T = np.array([*self.kernels.tiles, *_SINGLE], float).T
        cache = self.gpu.flops / (self.gpu.sms * self.kernels.balance)
        # Arithmetic, or fetching the tile's rows and columns.
        each_T = np.maximum(
            2 * rows_T * columns_T * self.gpu.sms / (self.flops * self.kernels.reach),
            (rows_T + columns_T) * self.itemsize / cache,
        )
        return rows_T, columns_T, beside_T, each_T

    def _by_tile(self, m_X: Sizes, n_X: Sizes, k_X: Sizes) -> Times:
        """Microseconds of arithmetic with each tile size, (X, T), `_SINGLE` last."""
        sms, kernels = self.gpu.sms, self.kernels
        rows_T, columns_T, beside_T, each_T = self._tiles_T
        m_XT, n_XT, k_XT = m_X[..., None], n_X[..., None], k_X[..., None]
        tiles_XT = np.ceil(m_XT / rows_T) * np.ceil(n_XT / columns_T)
        full_XT = np.floor(tiles_XT / (sms * beside_T)) * beside_T
        rest_XT = np.ceil(tiles_XT / sms - full_XT)
        # A last wave that leaves a multiprocessor half empty takes over half as long.
        last_XT = rest_XT + (1 - SHARED) * (beside_T - rest_XT) * (rest_XT > 0)
        ramped_XT = each_T * (k_XT + kernels.ramp) + kernels.wave
        best_XT: Times = (full_XT + last_XT) * ramped_XT
        if tiles_XT.min() * _SPLITS[0] > sms:
            return best_XT
        # Few tiles: K is split over several of them and the partial sums are added up.
        output_XT = 4 * m_XT * n_XT / self.gpu.bandwidth
        for split in _SPLITS:
            depth_XT = np.ceil(k_XT / split) + kernels.ramp
            split_XT = each_T * depth_XT + (kernels.wave + SPLIT_PAUSE) + output_XT * split
            split_XT[tiles_XT * split > sms] = np.inf
            np.minimum(best_XT, split_XT, out=best_XT)
        return best_XT
