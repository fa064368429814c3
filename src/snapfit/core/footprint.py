"""What a checkpoint computes, whichever tool compressed it: its linear layers by name and size.

Only names and sizes: `core.forward` turns them into the operators of a forward pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from snapfit.core.forward import Module
from snapfit.core.space import Frame


@dataclass(frozen=True, kw_only=True)
class Found:
    """One linear layer of a checkpoint.

    Attributes:
        module: its sizes; blocks of it are factor pairs where a tool has factored it.
        suffix: the name below its decoder layer, an expert's index replaced by '*'.
        parts: what the checkpoint calls each product, in the order of `core.forward`: the first
            factor, then the second factors, then the dense rows; ('',) for a plain layer.

    """

    module: Module
    suffix: str
    parts: tuple[str, ...] = ("",)

    @property
    def matrices(self) -> int:
        """Matrices that count in the share of aligned ones: one a factored block."""
        return max(1, len(self.module.blocks))

    def aligned(self, multiple: int) -> int:
        """How many of them are aligned: a block by its rank, a dense layer by rows and columns."""
        module = self.module
        if module.blocks:
            return sum(block.rank % multiple == 0 for block in module.blocks)
        return int(module.rows % multiple == 0 and module.cols % multiple == 0)


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """What a checkpoint computes for a token.

    Attributes:
        model: as the user named it.
        architecture: `model_type` of its configuration.
        dtype: what most weights are stored in, e.g. 'float16'.
        compressor: whose format its factors are in; '' if nothing is factored.
        frame: hidden size, vocabulary, layers; heads as the configuration has them.
        layers: the linear layers of each decoder layer, routers left out, by its index.
        head_dims: features of a head of each decoder layer whose attention is understood.
        notes: what the reader should know: assumptions, what was not understood.

    """

    model: str
    architecture: str
    dtype: str
    compressor: str
    frame: Frame
    layers: Mapping[int, tuple[Found, ...]]
    head_dims: Mapping[int, int]
    notes: tuple[str, ...] = ()

    @property
    def found(self) -> Iterator[Found]:
        """All linear layers of the decoder, layer by layer."""
        for layer in self.layers.values():
            yield from layer

    def frame_of(self, layer: int) -> Frame:
        """The frame of one decoder layer, with its own size of a head."""
        size = self.head_dims.get(layer, self.frame.head_dim)
        return replace(self.frame, head_dim=size)

    def alignment(self, multiple: int) -> float:
        """Share of the matrices whose sizes are multiples of `multiple`, 0..1.

        GAC's definition, the one of `core.plan.alignment`, for a model that has no plan.
        """
        matrices = sum(found.matrices for found in self.found)
        return sum(found.aligned(multiple) for found in self.found) / max(1, matrices)
