"""Every architecture: factor, save, load by either door, generate, save again, load again."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tiny_models import ARCHITECTURES, build, logits, sample_ids
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

import snapfit
from snapfit.checkpoint.blueprint import Blueprint
from snapfit.checkpoint.formats import save
from snapfit.core.layout import Block, Layouts, ModuleLayout
from snapfit.core.structure import Structure
from snapfit.models.source import empty_model, open_model
from snapfit.models.weights import open_weights
from snapfit.nn.factored import FactoredLinear
from snapfit.nn.surgery import reshape

ALL = (*ARCHITECTURES, "stablelm", "opt", "olmoe")
HEADS = ("lm_head", "embed_out")


def random_layouts(model: nn.Module, seed: int) -> Layouts:
    """Odd and even ranks, some layers dense, some in blocks of rows (one of them dense)."""
    generator = random.Random(seed)
    layouts: Layouts = {}
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear) or name in HEADS or generator.random() < 0.2:
            continue
        rows, cols = module.out_features, module.in_features
        if generator.random() < 0.25 and rows % 4 == 0:
            part = rows // 4
            ranks = [generator.randint(1, min(part, cols)) for _ in range(3)]
            blocks = (*(Block(rows=part, rank=r) for r in ranks), Block(rows=part, rank=None))
        else:
            blocks = (Block(rows=rows, rank=generator.randint(1, min(rows, cols))),)
        layouts[name] = ModuleLayout(inputs=cols, blocks=blocks)
    return layouts


def fill(model: nn.Module, dense: PreTrainedModel, dtype: torch.dtype) -> None:
    """Random factors, the source's biases and dense blocks."""
    generator = torch.Generator().manual_seed(1)
    for name, module in model.named_modules():
        if not isinstance(module, FactoredLinear):
            continue
        old = dense.get_submodule(name)
        module.to_empty(device="cpu")
        parts = list(module.b) if isinstance(module.b, nn.ModuleList) else [module.b]
        start = 0
        with torch.no_grad():
            noise = torch.randn(module.a.weight.shape, generator=generator) * 0.3
            module.a.weight.copy_(noise.to(dtype))
            for block, part in zip(module.layout.blocks, parts, strict=True):
                noise = torch.randn(part.weight.shape, generator=generator) * 0.3
                rows = slice(start, start + block.rows)
                part.weight.copy_(noise.to(dtype) if block.rank else old.weight[rows])
                if part.bias is not None:
                    part.bias.copy_(old.bias[rows])
                start += block.rows


def compressed(
    architecture: str, folder: Path, dtype: torch.dtype = torch.float32, **options: int
) -> tuple[PreTrainedModel, Path]:
    """(the model in memory, its folder)."""
    source = open_model(build(architecture, folder / "dense", dtype=dtype))
    reader = open_weights(source)
    dense, memory = empty_model(source), empty_model(source)
    reader.load_into(dense, "")
    reader.load_into(memory, "")
    layouts = random_layouts(memory, seed=len(architecture))
    reshape(memory, Structure(modules=layouts))
    fill(memory, dense, dtype)

    def factors() -> Iterator[tuple[str, torch.Tensor]]:
        for name, layout in layouts.items():
            for leaf, tensor in memory.get_submodule(name).state_dict().items():
                kind, _, index = leaf.removesuffix(".weight").partition(".")
                if leaf == "a.weight" or (
                    kind == "b"
                    and leaf.endswith(".weight")
                    and layout.blocks[int(index or 0)].rank is not None
                ):
                    yield f"{name}.{leaf}", tensor

    target = folder / "small"
    target.mkdir()
    save(
        target,
        source=source,
        model=empty_model(source),
        reader=reader,
        blueprint=Blueprint(structure=Structure(modules=layouts)),
        factors=factors(),
        **options,
    )
    return memory.eval(), target


@pytest.mark.parametrize("architecture", ALL)
def test_a_saved_model_is_the_model_in_memory(architecture: str, tmp_path: Path) -> None:
    memory, folder = compressed(architecture, tmp_path)
    expected = logits(memory)
    native = AutoModelForCausalLM.from_pretrained(folder)
    ours = snapfit.load(folder)
    assert type(native) is type(ours) is type(memory)
    assert any(isinstance(module, FactoredLinear) for module in native.modules())
    assert torch.equal(logits(native), expected)
    assert torch.equal(logits(ours), expected)
    assert not ours.training


@pytest.mark.parametrize("architecture", ALL)
def test_save_pretrained_keeps_every_bit(architecture: str, tmp_path: Path) -> None:
    _, folder = compressed(architecture, tmp_path, max_shard_size=20_000)
    first = snapfit.load(folder)
    first.save_pretrained(tmp_path / "again", max_shard_size="20KB")
    second = snapfit.load(tmp_path / "again")
    third = AutoModelForCausalLM.from_pretrained(tmp_path / "again")
    states = [model.state_dict() for model in (first, second, third)]
    assert states[0].keys() == states[1].keys() == states[2].keys()
    for name, tensor in states[0].items():
        assert torch.equal(tensor, states[1][name]), name
        assert torch.equal(tensor, states[2][name]), name
    assert torch.equal(logits(second), logits(first))


@pytest.mark.parametrize("architecture", ALL)
def test_generation_with_cache_equals_generation_without(architecture: str, tmp_path: Path) -> None:
    _, folder = compressed(architecture, tmp_path)
    model = snapfit.load(folder)
    ids = sample_ids(batch=2, length=5)
    options = {"max_new_tokens": 12, "min_new_tokens": 12, "do_sample": False}
    mask = torch.ones_like(ids)
    cached = model.generate(ids, attention_mask=mask, use_cache=True, **options)
    plain = model.generate(ids, attention_mask=mask, use_cache=False, **options)
    assert cached.shape == (2, 17)
    assert torch.equal(cached, plain)


@pytest.mark.parametrize("architecture", ["llama", "gpt_neox", "mixtral", "qwen3_moe"])
def test_half_precision_stays_half_precision(architecture: str, tmp_path: Path) -> None:
    memory, folder = compressed(architecture, tmp_path, dtype=torch.bfloat16)
    model = snapfit.load(folder)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert torch.equal(logits(model), logits(memory))
    wide = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert {p.dtype for p in wide.parameters()} == {torch.float32}
    assert {p.dtype for p in wide.half().parameters()} == {torch.float16}
