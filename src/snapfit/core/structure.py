"""What a compressed model looks like: integers and names only, checked on the way in.

A `Structure` is everything that a loader must know beyond the configuration of the source's
architecture, and is the content of `quantization_config` in a factored checkpoint:

    "modules": {"model.layers.0.mlp.up_proj": {"in": 576, "out": 1280, "rank": null}, ...}
    "absent":  {"model.layers.3.self_attn": "attention"}         sub-layers that return zeros
    "heads":   {"model.layers.1.self_attn": [6, 2]}              query and key-value heads left
    "expert_counts": {"model.layers.0.mlp.experts": 48}          experts left
    "vectors": {"model.layers.1.self_attn.q_norm.weight": 384}   entries left
    "layers":  [0, 1, [[2, -1.0], [3, 1.0], [4, 1.0]], 5]        which source layers each is made of
    "experts": "unfused"                                         one linear layer a matrix

Names are those of the compressed model, whose layers are numbered without gaps. Entries that say
nothing are left out; one that is not known is refused, as ignoring it would load another model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

from snapfit.core.checked import is_whole, shown
from snapfit.core.combination import MAX_LAYERS, Combination, layer_json, read_layer
from snapfit.core.errors import CorruptFile
from snapfit.core.layout import MAX_DIMENSION, Layouts, ModuleLayout

UNFUSED = "unfused"

SubLayer = Literal["attention", "mlp"]

_TABLES = ("modules", "absent", "heads", "expert_counts", "vectors")
ENTRIES = frozenset({*_TABLES, "layers", "experts"})


@dataclass(frozen=True, kw_only=True)
class Structure:
    """The shapes of a compressed model, by the names that its modules have after compression.

    Attributes:
        modules: linear layers that are narrowed or factored, or that have gained a bias.
        absent: sub-layers that are gone; they return zeros.
        heads: (query heads, key-value heads) of attention modules with fewer of them.
        experts: how many experts a container of experts has left.
        vectors: entries of parameters that are cut along, such as norms over all heads.
        layers: the output layers; () means those of the source.
        unfused: whether experts have one linear layer a matrix.

    """

    modules: Layouts = field(default_factory=dict)
    absent: Mapping[str, SubLayer] = field(default_factory=dict)
    heads: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    experts: Mapping[str, int] = field(default_factory=dict)
    vectors: Mapping[str, int] = field(default_factory=dict)
    layers: tuple[Combination, ...] = ()
    unfused: bool = False

    @property
    def sources(self) -> tuple[int, ...]:
        """The base of every output layer; () when the layers are those of the source."""
        return tuple(layer[0][0] for layer in self.layers)

    @property
    def ranks(self) -> bool:
        """Whether any layer is a factor pair."""
        return any(layout.ranks for layout in self.modules.values())

    @property
    def changed(self) -> int:
        """Modules and sub-layers that differ from the source's."""
        return len({*self.modules, *self.absent, *self.heads, *self.experts})

    def without_prefix(self, prefix: str) -> Structure:
        """The same with `prefix` taken off all names: those of a decoder without its head."""
        return replace(
            self,
            modules={name.removeprefix(prefix): value for name, value in self.modules.items()},
            absent={name.removeprefix(prefix): value for name, value in self.absent.items()},
            heads={name.removeprefix(prefix): value for name, value in self.heads.items()},
            experts={name.removeprefix(prefix): value for name, value in self.experts.items()},
            vectors={name.removeprefix(prefix): value for name, value in self.vectors.items()},
        )

    def to_json(self) -> dict[str, Any]:
        """A JSON-serialisable dictionary; `from_json` is its inverse."""
        data: dict[str, Any] = {
            "modules": {name: layout.to_json() for name, layout in self.modules.items()}
        }
        tables = {
            "absent": dict(self.absent),
            "heads": {name: list(counts) for name, counts in self.heads.items()},
            "expert_counts": dict(self.experts),
            "vectors": dict(self.vectors),
            "layers": [layer_json(layer) for layer in self.layers],
        }
        data |= {key: table for key, table in tables.items() if table}
        return {**data, "experts": UNFUSED} if self.unfused else data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Structure:
        """Validate a description written by a stranger.

        Raises:
            CorruptFile: an entry is unknown, of the wrong type, impossible, or contradicts another.

        """
        if unknown := sorted(map(str, set(data) - ENTRIES)):
            raise CorruptFile(f"quantization_config: unknown entry {unknown[0]!r}")
        tables = {key: _table(key, data.get(key, {})) for key in _TABLES}
        if "modules" not in data:
            raise CorruptFile("quantization_config: 'modules' must be a table, found None")
        experts = data.get("experts")
        if experts is not None and experts != UNFUSED:
            raise CorruptFile(
                f"quantization_config: 'experts' must be {UNFUSED!r}, found {shown(experts)}"
            )
        structure = cls(
            modules={n: ModuleLayout.from_json(n, entry) for n, entry in tables["modules"].items()},
            absent={n: _sub_layer(n, part) for n, part in tables["absent"].items()},
            heads={n: _heads(n, counts) for n, counts in tables["heads"].items()},
            experts={n: _count("expert_counts", n, c) for n, c in tables["expert_counts"].items()},
            vectors={n: _count("vectors", n, c) for n, c in tables["vectors"].items()},
            layers=_layers(data.get("layers", [])),
            unfused=experts == UNFUSED,
        )
        structure._check_absent()
        return structure

    def _check_absent(self) -> None:
        described = {*self.modules, *self.heads, *self.experts, *self.vectors}
        for name in self.absent:
            if inner := next((n for n in described if f"{n}.".startswith(f"{name}.")), None):
                raise CorruptFile(f"quantization_config: {name} is absent, so {inner} is no part")


def _table(key: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        raise CorruptFile(f"quantization_config: {key!r} must be a table, found {shown(value)}")
    return dict(value)


def _sub_layer(name: str, value: Any) -> SubLayer:
    if value not in get_args(SubLayer):
        raise CorruptFile(
            f"quantization_config: absent {name} must be 'attention' or 'mlp', found {shown(value)}"
        )
    part: SubLayer = value
    return part


def _heads(name: str, value: Any) -> tuple[int, int]:
    if not isinstance(value, list) or len(value) != 2:
        raise CorruptFile(f"quantization_config: heads of {name} must be two, found {shown(value)}")
    heads, kv_heads = (_count("heads", name, count) for count in value)
    if heads % kv_heads:
        raise CorruptFile(
            f"quantization_config: {name} cannot share {kv_heads} key-value heads among {heads}"
        )
    return heads, kv_heads


def _count(key: str, name: str, value: Any) -> int:
    if not is_whole(value) or not 1 <= value <= MAX_DIMENSION:
        raise CorruptFile(
            f"quantization_config: {key} of {name} must be a positive integer, found {shown(value)}"
        )
    return value


def _layers(value: Any) -> tuple[Combination, ...]:
    if not isinstance(value, list) or len(value) > MAX_LAYERS:
        raise CorruptFile(f"quantization_config: 'layers' must be a list, found {shown(value)}")
    return tuple(read_layer(entry, "quantization_config: 'layers'") for entry in value)
