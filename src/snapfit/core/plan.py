"""A plan: one integer a group, why, and digests of what it was made from. No tensors.

A plan is a file that people pass on, so `from_json` believes nothing: types, ranges, lengths,
and names, which must be module names and never paths.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, get_args

from snapfit.core.candidates import AlignRule, RuleAxis
from snapfit.core.checked import MAX_TEXT, is_real, is_whole, shown, text
from snapfit.core.errors import CorruptFile, SnapfitError
from snapfit.core.files import digest_json
from snapfit.core.layout import MAX_DIMENSION
from snapfit.core.space import Group, Space

SCHEMA = 1
MAX_GROUPS = 1_000_000

# 'model.layers.0.self_attn.q_proj', and '...k_proj#k:0-64' for a block of rows of a module.
_NAME = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*(#[a-z_]+:\d+-\d+)?")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The integers that a compressed model is cut to.

    Attributes:
        model: the model as the user named it.
        revision: digest of its weights; the plan applies to no others.
        architecture: `model_type` of its configuration.
        method: the compressor whose bases are cut.
        objective: how the sizes were chosen.
        sizes: {group: size}; for rank groups the full size means dense; 0 removes a part of a
            layer.
        budget: what was asked, e.g. {'of': 'linear', 'ratio': 0.2, 'params': 84934656}.
        predicted: e.g. {'loss': 0.31, 'unit': 'nats', 'params': 84931584}.
        recipe: the options that the ordered bases depend on; see `Options.recipe`.
        reasons: {group: a few words}.
        rules: the alignment rules that held.
        digests: {'space', 'tokens', 'ordered', ...: hex}.
        seed: of everything random on the way.
        version: of snapfit.
        schema: of this file format.

    """

    model: str
    revision: str
    architecture: str
    method: str
    objective: str
    sizes: Mapping[str, int]
    budget: Mapping[str, Any]
    predicted: Mapping[str, Any]
    recipe: Mapping[str, Any] = field(default_factory=dict)
    reasons: Mapping[str, str] = field(default_factory=dict)
    rules: tuple[AlignRule, ...] = ()
    digests: Mapping[str, str] = field(default_factory=dict)
    seed: int = 0
    version: str = ""
    schema: int = SCHEMA

    def to_json(self) -> dict[str, Any]:
        """A JSON-serialisable dictionary, schema first; `from_json` is its inverse."""
        data = asdict(self)
        data["rules"] = list(data["rules"])
        return {"schema": data.pop("schema"), **data}

    @property
    def digest(self) -> str:
        """16 hex digits that name the plan's content."""
        return digest_json(self.to_json())

    @classmethod
    def from_json(cls, data: Any) -> Plan:
        """Validate a plan written by a stranger.

        Raises:
            CorruptFile: anything is missing, unknown, of the wrong type or out of range.

        """
        if not isinstance(data, dict):
            raise CorruptFile(f"not a plan: expected a table, found {shown(data)}")
        schema = data.get("schema")
        if schema != SCHEMA or isinstance(schema, bool):
            raise CorruptFile(
                f"plan has schema {shown(schema)}, this snapfit reads {SCHEMA}; "
                "make the plan again, or use the snapfit that wrote it"
            )
        known = set(cls.__dataclass_fields__)
        required = {"model", "revision", "architecture", "method", "objective", "sizes"}
        required |= {"budget", "predicted"}
        if unknown := sorted(map(str, data.keys() - known)):
            raise CorruptFile(f"plan has unknown fields: {shown(', '.join(unknown))}")
        if missing := sorted(required - data.keys()):
            raise CorruptFile(f"plan lacks fields: {', '.join(missing)}")
        texts = {
            name: text(data.get(name, ""), f"plan's {name}")
            for name in ("model", "revision", "architecture", "method", "objective", "version")
        }
        for name in ("architecture", "method", "objective"):
            if not re.fullmatch(r"[A-Za-z0-9_+-]+", texts[name]):
                raise CorruptFile(f"plan's {name} {shown(texts[name])} is not a plain name")
        sizes = _table(data["sizes"], "sizes")
        if not sizes:
            raise CorruptFile("plan decides nothing: its sizes are empty")
        for name, size in sizes.items():
            check_name(name)
            if not is_whole(size) or not 0 <= size <= MAX_DIMENSION:
                raise CorruptFile(
                    f"plan gives {name} the size {shown(size)}; sizes are whole numbers "
                    f"from 0 to {MAX_DIMENSION}"
                )
        reasons = _texts(data.get("reasons", {}), "reasons")
        if stray := sorted(reasons.keys() - sizes.keys()):
            raise CorruptFile(f"plan has a reason for {shown(stray[0])}, which has no size")
        seed = data.get("seed", 0)
        if not is_whole(seed):
            raise CorruptFile(f"plan's seed must be a whole number, found {shown(seed)}")
        return cls(
            model=texts["model"],
            revision=texts["revision"],
            architecture=texts["architecture"],
            method=texts["method"],
            objective=texts["objective"],
            version=texts["version"],
            sizes=sizes,
            budget=_scalars(data["budget"], "budget"),
            predicted=_scalars(data["predicted"], "predicted"),
            recipe=_scalars(data.get("recipe", {}), "recipe"),
            reasons=reasons,
            rules=_rules(data.get("rules", [])),
            digests=_texts(data.get("digests", {}), "digests"),
            seed=seed,
        )

    def check(self, space: Space) -> None:
        """Refuse to apply the plan to anything but the model it was made for.

        Raises:
            SnapfitError: another revision, unknown or missing groups, sizes out of range,
                tied groups of different sizes.

        """
        if self.revision != space.revision:
            raise SnapfitError(
                f"the plan was made for revision {self.revision}, {space.model} is "
                f"{space.revision}; make the plan again for this model"
            )
        groups = {group.name: group for group in space.groups}
        for name, size in self.sizes.items():
            if name not in groups:
                raise SnapfitError(f"the plan names {name}, which {space.model} does not have")
            group = groups[name]
            if size != group.full and not group.least <= size <= group.break_even:
                raise SnapfitError(
                    f"the plan gives {name} the size {size}; it can have {group.least} "
                    f"to {group.break_even}, or {group.full}"
                )
        if missing := [name for name in groups if name not in self.sizes]:
            raise SnapfitError(f"the plan has no size for {missing[0]} ({len(missing)} missing)")
        for tie in space.ties:
            if len({self.sizes[name] for name in tie}) > 1:
                raise SnapfitError(f"the plan gives tied groups unequal sizes: {', '.join(tie)}")

    def diff(self, other: Plan) -> list[str]:
        """Readable lines: what `other` has that differs from this plan; empty if nothing."""
        mine, theirs = self.to_json(), other.to_json()
        lines = [
            f"{name}: {shown(mine[name])} -> {shown(theirs[name])}"
            for name in mine
            if name not in {"sizes", "reasons"} and mine[name] != theirs[name]
        ]
        for name in [*self.sizes, *(name for name in other.sizes if name not in self.sizes)]:
            before, after = self.sizes.get(name), other.sizes.get(name)
            if before != after:
                lines.append(f"{name}: {_size(before)} -> {_size(after)}")
        return lines


def check_name(name: Any) -> None:
    """Accept module names, with an optional block of rows, and nothing that could be a path.

    Raises:
        CorruptFile: anything else.

    """
    if not isinstance(name, str) or len(name) > MAX_TEXT or not _NAME.fullmatch(name):
        raise CorruptFile(
            f"{shown(name)} is not a module name such as 'model.layers.0.mlp.up_proj'"
        )


def alignment(space: Space, sizes: Mapping[str, int], multiple: int) -> float:
    """Share of the compressible matrices whose sizes are multiples of `multiple`, 0..1.

    GAC's definition. A factor pair counts by its rank; a matrix that is dense, or narrowed, counts
    by the rows and columns that it has left, both of which must be multiples, for those are what
    its kernel sees. Matrices that are removed do not count.
    """
    fits, total = 0, 0
    for group in space.counted(sizes):
        size = sizes.get(group.name, group.full)
        for rows, cols in _left(group, size):
            total += 1
            fits += rows % multiple == 0 and cols % multiple == 0
    return fits / max(1, total)


def _left(group: Group, size: int) -> list[tuple[int, int]]:
    """(rows, columns) of the group's matrices at `size`; of a pair, its rank twice."""
    if group.kind == "rank" and size < group.full:
        return [(size, size)] * len(group.matrices)
    if group.kind in {"rank", "depth"}:
        return [(matrix.rows, matrix.cols) for matrix in group.matrices]
    left = []
    for matrix in group.matrices:
        kept = matrix.features * size // group.full
        if kept == 0:
            continue
        if matrix.axis == "in":
            left.append((matrix.rows, kept))
        else:
            left.append((kept if matrix.axis == "out" else matrix.rows, matrix.cols))
    return left


def _size(size: int | None) -> str:
    return "absent" if size is None else str(size)


def _table(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, dict) or len(value) > MAX_GROUPS:
        raise CorruptFile(f"plan's {name} must be a table, found {shown(value)}")
    if any(not isinstance(key, str) or len(key) > MAX_TEXT for key in value):
        raise CorruptFile(f"plan's {name} has a key that is not a short text")
    return dict(value)


def _texts(value: Any, name: str) -> dict[str, str]:
    return {key: text(entry, f"plan's {name}[{key}]") for key, entry in _table(value, name).items()}


def _scalars(value: Any, name: str) -> dict[str, Any]:
    table = _table(value, name)
    for key, entry in table.items():
        if not (entry is None or isinstance(entry, str | bool) or is_real(entry)):
            raise CorruptFile(
                f"plan's {name}[{key}] must be a number or a text, found {shown(entry)}"
            )
    return table


def _rules(value: Any) -> tuple[AlignRule, ...]:
    if not isinstance(value, list):
        raise CorruptFile(f"plan's rules must be a list, found {shown(value)}")
    rules = []
    for entry in value:
        rule = _table(entry, "rule")
        if rule.keys() != set(AlignRule.__dataclass_fields__):
            raise CorruptFile(f"plan has a malformed rule: {shown(entry)}")
        if rule["axis"] not in get_args(RuleAxis) or not isinstance(rule["measured"], bool):
            raise CorruptFile(f"plan has a malformed rule: {shown(entry)}")
        penalty = rule["penalty"]
        if penalty is not None and not (is_real(penalty) and penalty > 0):
            raise CorruptFile(f"plan has a malformed rule: {shown(entry)}")
        if not is_whole(rule["multiple"]) or not 1 <= rule["multiple"] <= MAX_DIMENSION:
            raise CorruptFile(f"plan has a malformed rule: {shown(entry)}")
        rules.append(AlignRule(**{**rule, "source": text(rule["source"], "plan's rule source")}))
    return tuple(rules)
