"""What each of several devices must be given a share of: widths, heads, and what kernels ask."""

from __future__ import annotations

import pytest
from helpers import head_group, projection, stepped, width

from snapfit.core.candidates import AlignRule, legal_sizes
from snapfit.core.errors import UsageError
from snapfit.core.shares import check_space
from snapfit.core.space import Frame, Space
from snapfit.core.stack import Stack


def test_tensor_parallel_widths() -> None:
    rules = Stack(tp=4).rules
    assert legal_sizes(width(1024, 512), rules).tolist() == stepped(4, 1023, 1024)
    assert legal_sizes(projection(1024, 512), rules).tolist() == stepped(1, 341, 512)
    with pytest.raises(UsageError, match="a width of 1022, refused by: tp=4"):
        legal_sizes(width(1022, 512), rules)


@pytest.mark.parametrize(
    ("tp", "heads", "kv_heads", "legal"),
    [
        (2, 32, 8, [2, 4, 6, 8, 1]),
        (4, 32, 8, [4, 8, 1, 2]),  # of 1 or 2 KV heads every device has a copy
        (3, 24, 6, [3, 6]),  # 4 query heads of one KV head do not go round 3 devices
        (4, 16, 2, [1, 2]),
        (8, 8, 8, [8]),
    ],
)
def test_tensor_parallel_heads(tp: int, heads: int, kv_heads: int, legal: list[int]) -> None:
    group = head_group(heads, kv_heads, 64, 512)
    assert legal_sizes(group, Stack(tp=tp).rules).tolist() == sorted(legal)


def test_tp_3_on_8_kv_heads_is_impossible() -> None:
    rules = Stack(tp=3).rules
    with pytest.raises(UsageError, match=r"8 key-value heads, refused by: tp=3 gives every"):
        legal_sizes(head_group(32, 8, 128, 4096), rules)


@pytest.mark.parametrize("heads", [(32, 8), (14, 2)])
def test_ranks_do_not_help_a_model_that_cannot_be_split(heads: tuple[int, int]) -> None:
    frame = Frame(hidden=512, vocab=1000, layers=1, heads=heads[0], kv_heads=heads[1], head_dim=64)
    space = Space(
        model="m",
        revision="r",
        architecture="llama",
        groups=(projection(1024, 512), projection(900, 512, "gate")),
        total_params=1,
        kv_elements=1,
        frame=frame,
    )
    check_space(space, Stack(tp=2).rules)
    with pytest.raises(UsageError, match=r"query and .* key-value heads, refused by: tp=3"):
        check_space(space, Stack(tp=3).rules)
    with pytest.raises(UsageError, match=r"gate_proj has a width of 900, refused by: tp=8.*width"):
        check_space(space, Stack(tp=8).rules)


def test_check_names_every_clash() -> None:
    space = Space(
        model="m",
        revision="r",
        architecture="llama",
        groups=(projection(96, 96),),
        total_params=1,
        kv_elements=1,
    )
    with pytest.raises(UsageError) as caught:
        check_space(space, Stack(quant="machete").rules)
    text = str(caught.value)
    assert "Machete takes N 128" in text
    assert "group=128" in text
    assert "choose another tp, quant or group" in text


def test_kernels_see_a_devices_share() -> None:
    stack = Stack(tp=2, quant="block-fp8")
    assert legal_sizes(width(1024, 512), stack.rules).tolist() == [256, 512, 768, 1024]
    heads = head_group(16, 8, 64, 512)
    # 64 features a head: a share of 128 key features is 2 heads of each of 2 devices.
    assert legal_sizes(heads, stack.rules).tolist() == [4, 8]
    assert legal_sizes(projection(1024, 1024), stack.rules).tolist() == [128, 256, 384, 1024]
    with pytest.raises(UsageError, match="K 1152 over 2"):
        legal_sizes(projection(1024, 1152, "down"), Stack(tp=2, quant="block-fp8").rules)


def test_keys_and_values_of_fewer_heads_than_devices_are_copied() -> None:
    rules = Stack(tp=4, quant="block-fp8").rules
    # Of 2 heads each of 4 devices has one, whole: 128 of its features.
    assert legal_sizes(head_group(16, 8, 128, 512), rules).tolist() == [2, 4, 8]
    rules = Stack(tp=2, quant="block-fp8").rules
    assert legal_sizes(projection(128, 1024, "k"), rules).tolist() == [128]
    with pytest.raises(UsageError, match="N 128 over 2"):
        legal_sizes(projection(128, 1024, "q"), rules)


def test_device_rules_bind_the_share_too() -> None:
    rule = AlignRule(axis="in", multiple=16, source="gpu", measured=True, penalty=1.1)
    (shared,) = Stack(tp=2).share((rule,))
    assert legal_sizes(width(256, 64), (shared,)).tolist() == stepped(32, 255, 256)
    assert legal_sizes(projection(256, 256), (shared,)).tolist() == stepped(16, 127, 256)
    assert shared.plain() == rule
    assert Stack().share((rule,)) == (rule,)
    with_own = (*Stack(tp=2).share((rule,)), *Stack(tp=2, quant="marlin").rules)
    assert legal_sizes(width(1024, 512), with_own).tolist() == [256, 512, 768, 1024]
