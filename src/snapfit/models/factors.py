"""Linear layers, plain or factored, from the names and shapes of a checkpoint's tensors.

How tools store y = B (A x), A of shape (rank, in) and B of shape (out, rank):

    tool      A                     B                           source
    snapfit   x.a                   x.b, or x.b.<i> a block     checkpoint.format
    ASVD      x.BLinear             x.ALinear                   hahnyuan/ASVD4LLM
    SVD-LLM   q_v_proj (of q_proj)  q_u_proj                    AIoT-MLSys-Lab/SVD-LLM
    PaLU      x.VT                  x.U.<i>, x.U_list.<i>       shadowpa0327/Palu

Scripts around ASVD exist that use its two names the other way about, so of ASVD's pairs the shapes
decide. Factors of a tool that is not listed are found as two plain layers: their times are right,
only the share of aligned matrices then counts them by rows and columns.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from snapfit.core.errors import CorruptFile
from snapfit.core.footprint import Found
from snapfit.core.forward import Block, Module
from snapfit.models.roles import role_of

Shape = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Format:
    """The names that one tool gives to factors.

    Attributes:
        tool: its name.
        first: matches a first factor; group 'base', with 'tail' appended, names the module.
        second: the same for a second factor; group 'index' numbers the blocks.
        either: whether the two names may mean the factors the other way about.

    """

    tool: str
    first: re.Pattern[str]
    second: re.Pattern[str]
    either: bool = False


FORMATS = (
    Format(
        tool="snapfit",
        first=re.compile(r"(?P<base>.+)\.(?P<part>a)"),
        second=re.compile(r"(?P<base>.+)\.(?P<part>b(?:\.(?P<index>\d+))?)"),
    ),
    Format(
        tool="ASVD",
        first=re.compile(r"(?P<base>.+)\.(?P<part>BLinear)"),
        second=re.compile(r"(?P<base>.+)\.(?P<part>ALinear)"),
        either=True,
    ),
    Format(
        tool="SVD-LLM",
        first=re.compile(r"(?P<base>(?:.+\.)?[a-z0-9_]+?)_(?P<part>v)(?P<tail>_proj)"),
        second=re.compile(r"(?P<base>(?:.+\.)?[a-z0-9_]+?)_(?P<part>u)(?P<tail>_proj)"),
    ),
    Format(
        tool="PaLU",
        first=re.compile(r"(?P<base>.+)\.(?P<part>VT)"),
        second=re.compile(r"(?P<base>.+)\.(?P<part>U(?:_list)?\.(?P<index>\d+))"),
    ),
)


@dataclass(frozen=True, kw_only=True)
class _Factor:
    """One stored factor."""

    part: str
    key: str
    rows: int
    cols: int
    index: int


def find_modules(
    shapes: Mapping[str, Shape], *, prefix: str, layer: int, hidden: int, experts: int
) -> Iterator[tuple[Found, str]]:
    """(linear layer, tool) of every one in a decoder layer, or in what lies outside of them.

    Args:
        shapes: by key below `prefix`, weights as (out, in).
        prefix: put before every name.
        layer: index of the decoder layer; -1 outside of them.
        hidden: width of the residual stream.
        experts: of a layer; 0 without.

    Raises:
        CorruptFile: factors do not multiply.

    """
    plain = {
        key.removesuffix(".weight"): shape
        for key, shape in shapes.items()
        if key.endswith(".weight") and len(shape) == 2
    }
    make = _Maker(prefix=prefix, layer=layer, experts=experts)
    for form in FORMATS:
        firsts = _matching(form.first, plain)
        seconds = _matching(form.second, plain)
        for base, (first, *_) in firsts.items():
            if base not in seconds:
                continue
            pair = _ordered(prefix + base, first, seconds[base], either=form.either)
            for factor in (first, *seconds[base]):
                plain.pop(factor.key)
            yield make.factored(base, *pair), form.tool
    for name, (rows, cols) in plain.items():
        yield make.dense(name, rows, cols), ""
    for name, stacked in shapes.items():
        if len(stacked) == 3 and ".experts." in f".{name}":
            for found in make.stack(name.removesuffix(".weight"), stacked, hidden):
                yield found, ""


@dataclass(frozen=True, kw_only=True)
class _Maker:
    """Makes the linear layers of one decoder layer."""

    prefix: str
    layer: int
    experts: int

    def dense(self, name: str, rows: int, cols: int) -> Found:
        """A layer that was not factored."""
        return self._found(name, rows, cols, (), ("",))

    def factored(self, name: str, first: _Factor, seconds: list[_Factor], rank: int) -> Found:
        """A layer of factors; blocks of `seconds` that read the layer's own input are dense."""
        whole = sum(factor.cols for factor in seconds) == rank
        pairs = [f for f in seconds if whole or f.cols != first.cols]
        rest = [f for f in seconds if f not in pairs]
        blocks = tuple(Block(rows=f.rows, rank=f.cols) for f in pairs)
        parts = (first.part, *(f.part for f in pairs), *([rest[0].part] if rest else []))
        return self._found(name, sum(f.rows for f in seconds), first.cols, blocks, parts)

    def stack(self, name: str, shape: Shape, hidden: int) -> Iterator[Found]:
        """All experts of a layer in one tensor, (experts, out, in) or (experts, in, out)."""
        copies, rows, cols = shape
        if (rows if name.endswith("down_proj") else cols) != hidden:
            rows, cols = cols, rows
        outer, _, leaf = name.rpartition(".")
        for index in range(copies):
            yield self.dense(f"{outer}.{index}.{leaf}", rows, cols)

    def _found(
        self, name: str, rows: int, cols: int, blocks: tuple[Block, ...], parts: tuple[str, ...]
    ) -> Found:
        module = Module(
            name=self.prefix + name,
            role=self._role(name, rows),
            layer=self.layer,
            rows=rows,
            cols=cols,
            blocks=blocks,
        )
        return Found(module=module, suffix=re.sub(r"(?<=\.)\d+(?=\.)", "*", name), parts=parts)

    def _role(self, name: str, rows: int) -> str:
        if self.layer < 0:
            return "head"
        role = role_of(name, rows=rows, experts=self.experts)
        # SVD-LLM's 'fc1_u_proj' is a factor of 'fc1', not of 'fc1_proj'.
        bare = role_of(name.removesuffix("_proj"), rows=rows, experts=self.experts)
        return bare if role == "other" else role


def _matching(pattern: re.Pattern[str], plain: Mapping[str, Shape]) -> dict[str, list[_Factor]]:
    """Factors by the module that they belong to, blocks in order."""
    found: dict[str, list[_Factor]] = {}
    for key, (rows, cols) in plain.items():
        if match := pattern.fullmatch(key):
            groups = match.groupdict()
            found.setdefault(groups["base"] + groups.get("tail", ""), []).append(
                _Factor(
                    part=groups["part"],
                    key=key,
                    rows=rows,
                    cols=cols,
                    index=int(groups.get("index") or 0),
                )
            )
    return {base: sorted(parts, key=lambda part: part.index) for base, parts in found.items()}


def _ordered(
    name: str, first: _Factor, seconds: list[_Factor], *, either: bool
) -> tuple[_Factor, list[_Factor], int]:
    """The factors in the order in which they run, and their rank."""
    orders = [(first, seconds)]
    if either and len(seconds) == 1:
        orders.append((seconds[0], [first]))
    fitting = [(a, bs, a.rows) for a, bs in orders if _multiply(a, bs)]
    if not fitting:
        shapes = " and ".join(f"{f.rows} x {f.cols}" for f in (first, *seconds))
        raise CorruptFile(f"{name}: its factors {shapes} do not multiply; copy the model again")
    return min(fitting, key=lambda order: order[2])


def _multiply(first: _Factor, seconds: list[_Factor]) -> bool:
    """Whether all second factors, or all but the dense blocks, share the first one's rows."""
    sizes = [factor.cols for factor in seconds]
    return first.rows in {sum(sizes), sum(size for size in sizes if size != first.cols)}
