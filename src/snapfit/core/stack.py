"""What serving asks of sizes: tensor parallelism, quantised kernels, file formats, engines.

Read from the checks of vLLM 0.32 and llama.cpp (N: output features, K: input features, both of one
device's share of a matrix):

    quant          N     K     group         of a matrix that breaks it
    marlin         64    128   32, 64, 128   padded at every call; a group that does not divide
      (or          128   64)   or a column   K is refused
    machete        128   64    64, 128       refused: another kernel is taken
    cutlass-w4a8   128   128   128           refused
    fp8            16    16                  padded at every call
    block-fp8      128   128   128 x 128     refused
    deepgemm       64    128                 refused: another kernel is taken
    nvfp4          32    32                  padded at every call
    gguf                 32                  that tensor stays in 16 bits
    gguf-k               256                 that tensor gets another type, in blocks of 32

Tensor parallel t: widths % t, query heads % t, and KV heads % t or t % KV heads (then every device
has a copy of one). A factor pair is split only where the dense matrix is, so ranks need no
divisibility by t.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType

from snapfit.core.candidates import AlignRule, RuleAxis
from snapfit.core.errors import UsageError
from snapfit.core.names import unknown_name
from snapfit.core.shares import ShareRule

COLUMN = "column"
"""A quantisation group that is a whole column of K."""

FORMATS = ("factored", "standalone", "decilm", "stock", "folded")
"""Formats of checkpoints, the most general first."""

ENGINES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "vllm": FORMATS,
        "transformers": FORMATS,
        "tensorrt-llm": ("decilm", "stock", "folded"),
        "llama.cpp": ("decilm", "stock", "folded"),
    }
)
"""Formats that each serving engine loads; 'factored' through our plug-in."""


@dataclass(frozen=True, kw_only=True)
class Quant:
    """What the kernels of one kind of quantised weights ask for.

    Attributes:
        tiles: alternatives (multiple of N, multiple of K).
        refused: whether other matrices are refused, not padded or stored otherwise.
        groups: sizes of a quantisation group along K that it takes, the usual one first.
        engines: which engines have it.
        capabilities: lowest and highest CUDA compute capability that it runs on, as 10 x major +
            minor, from the engine's own checks.
        source: the rule in words.

    """

    tiles: tuple[tuple[int, int], ...]
    refused: bool
    source: str
    groups: tuple[str, ...] = ()
    engines: tuple[str, ...] = ("vllm",)
    capabilities: tuple[int, int] = (0, 999)


QUANTS: Mapping[str, Quant] = MappingProxyType(
    {
        "marlin": Quant(
            tiles=((64, 128), (128, 64)),
            refused=False,
            groups=("128", "64", "32", COLUMN),
            capabilities=(75, 999),
            source="Marlin GPTQ/AWQ takes N 64 and K 128, or N 128 and K 64; others are padded "
            "at every call (vLLM 0.32)",
        ),
        "machete": Quant(
            tiles=((128, 64),),
            refused=True,
            groups=("128", "64", COLUMN),
            capabilities=(90, 90),
            source="Machete takes N 128 and K 64 (vLLM 0.32)",
        ),
        "cutlass-w4a8": Quant(
            tiles=((128, 128),),
            refused=True,
            groups=("128",),
            capabilities=(90, 90),
            source="CUTLASS W4A8 takes N 128 and K 128 (vLLM 0.32)",
        ),
        "fp8": Quant(
            tiles=((16, 16),),
            refused=False,
            capabilities=(89, 999),
            source="FP8 CUTLASS takes N 16 and K 16; others are padded at every call (vLLM 0.32)",
        ),
        "block-fp8": Quant(
            tiles=((128, 128),),
            refused=True,
            capabilities=(89, 999),
            source="block FP8 scales blocks of N 128 by K 128 (vLLM 0.32)",
        ),
        "deepgemm": Quant(
            tiles=((64, 128),),
            refused=True,
            capabilities=(90, 129),
            source="DeepGEMM FP8 takes N 64 and K 128 (vLLM 0.32)",
        ),
        "nvfp4": Quant(
            tiles=((32, 32),),
            refused=False,
            capabilities=(100, 129),
            source="NVFP4 CUTLASS takes N 32 and K 32; others are padded at every call (vLLM 0.32)",
        ),
        "gguf": Quant(
            tiles=((1, 32),),
            refused=False,
            engines=("llama.cpp", "vllm"),
            source="GGUF stores blocks of 32 along K; other tensors stay in 16 bits (llama.cpp)",
        ),
        "gguf-k": Quant(
            tiles=((1, 256),),
            refused=False,
            engines=("llama.cpp", "vllm"),
            source="GGUF K-quants store blocks of 256 along K; other tensors get another type "
            "(llama.cpp)",
        ),
    }
)


@dataclass(frozen=True, kw_only=True)
class Stack:
    """What runs a model on a device, beside the device.

    Attributes:
        tp: devices that share every layer (tensor parallel).
        quant: kind of quantised weights, a name of `QUANTS`; None: weights as they are.
        group: weights that share a scale along K, or 'column'; None: the usual one of `quant`.
        engine: what serves, a name of `ENGINES`; None: anything.
        format: the checkpoint's format, a name of `FORMATS`; None: whatever the engine loads.

    Raises:
        UsageError: an unknown name, or parts that do not go together.

    """

    tp: int = 1
    quant: str | None = None
    group: str | None = None
    engine: str | None = None
    format: str | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.tp <= 1024:
            raise UsageError(f"tp={self.tp}: tensor parallel takes from 1 to 1024 devices")
        named: tuple[tuple[str, str | None, tuple[str, ...]], ...] = (
            ("quant", self.quant, tuple(QUANTS)),
            ("engine", self.engine, tuple(ENGINES)),
            ("format", self.format, FORMATS),
        )
        for what, name, known in named:
            if name is not None and name not in known:
                raise unknown_name(what, name, known)
        engines = QUANTS[self.quant].engines if self.quant else ()
        if self.quant and self.engine and self.engine not in engines:
            raise UsageError(
                f"engine={self.engine} has no kernels for quant={self.quant}; "
                f"{' and '.join(engines)} have"
            )
        if self.format is not None:
            self.check_format(self.format)
        groups = QUANTS[self.quant].groups if self.quant else ()
        if self.group is not None and self.group not in groups:
            takes = f"takes {', '.join(groups)}" if groups else "has none"
            raise UsageError(f"group={self.group}: quant={self.quant or 'none'} {takes}")

    def check_format(self, name: str) -> None:
        """Refuse a format that cannot be served here.

        Raises:
            UsageError: says why, and which formats can.

        """
        if name in self.formats:
            return
        engine = f"engine={self.engine} does not load format={name}"
        if self.engine is None or name in ENGINES[self.engine]:
            engine = (
                f"weights of quant={self.quant} cannot be in format={name}: a checkpoint has one "
                "quant_method"
            )
        raise UsageError(f"{engine}; choose from: {', '.join(self.formats)}")

    @property
    def formats(self) -> tuple[str, ...]:
        """Formats of a checkpoint that the engine loads, the most general first.

        Quantised weights leave out 'factored': a checkpoint has one `quant_method`, and there it is
        snapfit's. Factors have no place in GGUF.
        """
        loaded = ENGINES[self.engine] if self.engine else FORMATS
        if self.quant is None:
            return loaded
        held = ENGINES["llama.cpp"] if self.quant.startswith("gguf") else FORMATS
        return tuple(name for name in loaded if name in held and name != "factored")

    @property
    def rules(self) -> tuple[AlignRule, ...]:
        """What the stack asks of sizes; none for one device and weights as they are."""
        rules: list[AlignRule] = []
        if self.tp > 1:
            text = f"tp={self.tp} gives every device the same"
            rules += [
                self._rule("width", 1, f"{text} share of a width"),
                self._rule("heads", 1, f"{text} number of query heads and of key-value heads"),
            ]
        if self.quant is not None:
            quant = QUANTS[self.quant]
            rules.append(
                ShareRule(
                    axis="rank",
                    multiple=math.lcm(*(side for tile in quant.tiles for side in tile)),
                    source=quant.source,
                    shares=self.tp,
                    tiles=quant.tiles,
                    refused=quant.refused,
                )
            )
            group = self.group or next(iter(quant.groups), COLUMN)
            if group != COLUMN:
                text = (
                    f"{self.quant} with group={group}: K is cut into groups of {group} (vLLM 0.32)"
                )
                rules.append(self._rule("in", int(group), text))
        return tuple(rules)

    def share(self, rules: tuple[AlignRule, ...]) -> tuple[AlignRule, ...]:
        """A device's own rules, for the share of a matrix that it gets."""
        if self.tp == 1:
            return rules
        return tuple(
            ShareRule(
                axis=rule.axis,
                multiple=rule.multiple,
                source=rule.source,
                measured=rule.measured,
                penalty=rule.penalty,
                shares=self.tp,
            )
            for rule in rules
        )

    def __str__(self) -> str:
        parts = {f.name: getattr(self, f.name) for f in fields(self)}
        return "".join(
            f",{name}={value}"
            for name, value in parts.items()
            if value is not None and (name, value) != ("tp", 1)
        )

    def _rule(self, axis: RuleAxis, multiple: int, source: str) -> ShareRule:
        return ShareRule(axis=axis, multiple=multiple, source=source, shares=self.tp, refused=True)
