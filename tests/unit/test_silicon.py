"""GPUs that NVIDIA measured: what the installed tables say, and the model between their points."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from snapfit.core.errors import SnapfitError, UsageError
from snapfit.core.operators import Attention, Elementwise, Launch, Linear
from snapfit.core.progress import Silent
from snapfit.hardware import _gpus, published, resolve_target, silicon
from snapfit.hardware._attention import law
from snapfit.hardware._gpus import gpu_names, read_gpu
from snapfit.hardware._sweep import sweep
from snapfit.hardware._tables import software_of
from snapfit.hardware._tiles import LAWS, Laws, TileModel
from snapfit.hardware.silicon import SiliconTimer

for module in ("aiconfigurator_core", "pyarrow"):
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is not installed: snapfit[hardware]", allow_module_level=True)

TABLED = ("a100_sxm", "l40s", "h100_sxm", "h200_sxm", "b200_sxm", "gb200", "rtx_pro_6000_server")
A100 = SiliconTimer("a100_sxm")


def linear(m: int, n: int, k: int = 4096, timer: SiliconTimer = A100) -> float:
    return timer.time(Linear(m=m, n=n, k=k)).microseconds


def attention(timer: SiliconTimer = A100, **changes: Any) -> Any:
    sizes = {"batch": 1, "query": 1024, "context": 1024, "heads": 32, "kv_heads": 8}
    return timer.time(Attention(**({"head_dim": 128, "causal": True} | sizes | changes)))


@pytest.mark.parametrize(
    ("n", "microseconds"),
    [(3072, 103), (3584, 203), (4096, 204), (5120, 204), (6144, 205), (7168, 304)],
)
def test_grid_points_are_nvidias_own(n: int, microseconds: float) -> None:
    found = A100.time(Linear(m=1024, n=n, k=4096))
    assert found.source == "table"
    assert round(found.microseconds) == microseconds
    assert "a100_sxm" in found.how


@pytest.mark.parametrize(
    ("m", "low", "high", "cliff"),
    # Tiles of 128 x 256 on 108 multiprocessors: 13, 27 and 6 columns of tiles fill whole waves.
    [(1024, 3072, 3584, 13 * 256), (1024, 6144, 7168, 27 * 256), (2048, 1536, 2048, 6 * 256)],
)
def test_wave_cliffs_lie_where_tiles_begin_another_wave(
    m: int, low: int, high: int, cliff: int
) -> None:
    before, after = linear(m, low), linear(m, high)
    assert after > 1.25 * before
    times = {n: linear(m, n) for n in range(low, high + 1, 16)}
    for n, time in times.items():
        assert time == pytest.approx(before if n <= cliff else after, rel=0.07), n


def test_between_points_time_is_a_model_with_a_spread() -> None:
    found = A100.time(Linear(m=1024, n=5000, k=4080))
    assert found.source == "model"
    assert 0.03 < found.spread < 0.2
    assert "N and K between its points" in found.how


@pytest.mark.parametrize("name", ["a100_sxm", "h100_sxm"])
def test_alignment_tiers_at_the_published_size(name: str) -> None:
    timer = SiliconTimer(name)
    tiers = {
        "a100_sxm": ((3.0, 1.6, 1.12), (3.1, 1.7, 1.09)),
        "h100_sxm": ((3.4, 2.1, 1.0), (3.4, 2.1, 1.0)),
    }[name]
    for tier, shape in zip(tiers, (lambda x: (4096, x), lambda x: (x, 4096)), strict=True):
        aligned = linear(512, 4096, 4096, timer)
        for size, factor in zip((4095, 4094, 4088), tier, strict=True):
            n, k = shape(size)
            assert linear(512, n, k, timer) == pytest.approx(factor * aligned, rel=0.07)
        for size in (4080, 4064, 4032):
            assert linear(512, *shape(size), timer) == pytest.approx(aligned, rel=0.03)


@pytest.mark.parametrize("name", ["a100_sxm", "h100_sxm"])
def test_a_saved_profile_knows_the_tiers(name: str, tmp_path: Path) -> None:
    place = resolve_target(name)
    shapes = (Launch(), *(Linear(m=1024, n=4096, k=k) for k in (2032, 2048)))
    done = sweep(place, shapes, tmp_path / "p", seconds=None, progress=Silent())
    for k in (2047, 2046, 2044, 2040):
        operator = Linear(m=1024, n=4096, k=k)
        expected = SiliconTimer(name).time(operator).microseconds
        assert done.profile.time(operator).microseconds == pytest.approx(expected, rel=0.1)


def test_tokens_have_no_tier() -> None:
    assert linear(511, 4096) == pytest.approx(linear(512, 4096), rel=0.02)


def test_vectors_lose_little_to_misalignment() -> None:
    aligned = linear(1, 4096, 4096)
    assert linear(1, 4096, 4095) == pytest.approx(1.12 * aligned, rel=0.04)
    assert linear(1, 4095, 4096) == pytest.approx(1.04 * aligned, rel=0.03)


@pytest.mark.parametrize("name", TABLED)
def test_more_work_takes_no_less_time(name: str) -> None:
    timer = SiliconTimer(name)
    for m in (1, 64, 1024):
        for time in (
            [linear(m, n, 4096, timer) for n in range(512, 16384, 496)],
            [linear(m, 4096, k, timer) for k in range(512, 16384, 496)],
        ):
            least_above = np.minimum.accumulate(time[::-1])[::-1]
            # The tables themselves dip here and there, where a library changes kernels.
            assert np.mean(np.array(time) <= 1.1 * least_above) > 0.85
            assert np.median(np.array(time) / least_above) < 1.02
            assert time[-1] > 3 * time[0]


@pytest.mark.parametrize("name", ["a100_sxm", "h100_sxm"])
def test_nothing_is_faster_than_the_peak(name: str) -> None:
    timer, gpu = SiliconTimer(name), read_gpu(name)
    rng = np.random.default_rng(0)
    for _ in range(200):
        m, n, k = (int(2 ** rng.uniform(9, 14)) // 16 * 16 for _ in range(3))
        assert linear(m, n, k, timer) > Linear(m=m, n=n, k=k).flops / gpu.flops


def test_attention_of_the_table_and_between() -> None:
    exact = attention()
    assert exact.source == "table"
    pruned = attention(heads=28, kv_heads=7)
    assert pruned.source == "model"
    assert attention(heads=24).microseconds < pruned.microseconds < exact.microseconds
    longer = attention(query=1100, context=1100)
    assert (
        exact.microseconds < longer.microseconds < attention(query=1536, context=1536).microseconds
    )


def test_a_decoding_step_attends_to_the_tokens_before_it_and_its_own() -> None:
    gpu = read_gpu("a100_sxm")
    (path,) = (gpu.data / "attention" / "vllm").glob("*/generation_attention_perf.parquet")
    rows = importlib.import_module("pyarrow.parquet").read_table(path).to_pylist()
    kept = [row for row in rows if row["attn_dtype"] == row["kv_cache_dtype"] == "bfloat16"]
    row = next(row for row in kept if row.get("window_size", 0) == 0 and row["step"] > 1000)
    found = attention(
        batch=row["batch_size"],
        query=1,
        context=row["step"] + 1,
        heads=row["num_heads"],
        kv_heads=row["num_key_value_heads"],
        head_dim=row["head_dim"],
    )
    assert found.source == "table"
    assert found.microseconds == pytest.approx(1000 * row["latency"])


def test_the_newest_version_of_the_first_engine_is_read(tmp_path: Path) -> None:
    for folder in ("sglang/2.0", "vllm/0.9.1", "vllm/0.14.0", "vllm/0.2.0"):
        (tmp_path / "gemm" / folder).mkdir(parents=True)
        (tmp_path / "gemm" / folder / "gemm_perf.parquet").touch()
    assert software_of(tmp_path) == "vllm 0.14.0"


def test_beyond_the_grid_the_spread_grows() -> None:
    spreads = [A100.time(Linear(m=1024, n=n, k=4096)).spread for n in (100_000, 400_000)]
    assert spreads[0] < spreads[1]
    assert spreads[1] > 0.2


def test_tiles_share_multiprocessors_and_few_of_them_split_the_sum() -> None:
    gpu = read_gpu("a100_sxm")
    model = TileModel(gpu=gpu, flops=gpu.flops, itemsize=2)

    def laws(m: int, n: int, k: int = 16384) -> Laws:
        return model.laws(*(np.array(float(size)) for size in (m, n, k)))

    # One 128 x 128 tile on each of 108 multiprocessors, where two have room.
    launch, law = model.kernels.launch, LAWS.index("128x128")
    single, double = (float(laws(1152, n).times_LX[law]) - launch for n in (1536, 3072))
    assert single == pytest.approx(0.6 * double)
    # One tile, the smallest, would take as long as 108 of them, if it were not split.
    assert laws(16, 64).arithmetic_X < 0.4 * laws(16, 64 * 108).arithmetic_X


def test_a_head_alone_leaves_most_multiprocessors_idle() -> None:
    gpu = read_gpu("a100_sxm")

    def time(heads: int) -> float:
        sizes = (1, 1024, 1024, heads, heads, 128, 1024 * 1025 / 2)
        return float(law(gpu, *(np.array(float(size)) for size in sizes)))

    # 8 blocks of rows a head: 13 heads still find a place at once.
    assert time(1) > 0.6 * time(13)


def test_decoding_grows_with_the_cache() -> None:
    times = [
        attention(batch=8, query=1, context=context).microseconds for context in (1000, 3000, 9000)
    ]
    assert times[0] < times[1] < times[2]
    few = attention(batch=8, query=1, context=9000, kv_heads=4).microseconds
    assert few < 0.75 * times[2]


def test_head_dimensions_step_by_template() -> None:
    times = {
        d: attention(query=2048, context=2048, kv_heads=32, batch=4, head_dim=d, causal=False)
        .microseconds
        for d in range(64, 257, 8)
    }  # fmt: skip
    jumps = [d for d in times if d > 64 and times[d] > 1.15 * times[d - 8]]
    assert jumps == [72, 104, 136, 168, 200]
    for before in (64, 96, 128):
        assert 1.36 <= times[before + 8] / times[before] <= 1.46
    assert 1.42 <= times[200] / times[192] <= 1.56


def test_odd_head_dimensions_are_padded_and_copied() -> None:
    for odd, padded in ((65, 72), (107, 112), (150, 152), (255, 256)):
        sizes = {"batch": 4, "query": 2048, "context": 2048, "kv_heads": 32, "causal": False}
        found = attention(head_dim=odd, **sizes)
        ratio = found.microseconds / attention(head_dim=padded, **sizes).microseconds
        assert 1.2 <= ratio <= 1.45
        assert "padded" in found.how


def test_streams_and_launches() -> None:
    one, many = (A100.time(Elementwise(elements=10**8, ops=ops)).microseconds for ops in (1, 5))
    assert many - one == pytest.approx(4 * 3.0)
    assert one == pytest.approx(2e8 / (2.039e6 * 0.8) + 3.0)
    launch = A100.time(Launch())
    assert 1 < launch.microseconds < 5
    assert launch.source == "table"


def test_float8_has_its_own_times_and_multiples() -> None:
    half, byte = SiliconTimer("h100_sxm"), SiliconTimer("h100_sxm").with_dtype("float8_e4m3fn")
    assert byte.dtype == "float8"
    assert linear(4096, 8192, 8192, byte) < 0.75 * linear(4096, 8192, 8192, half)
    assert linear(512, 4090, 4096, byte) == linear(512, 4096, 4096, byte)
    with pytest.raises(SnapfitError, match="a100_sxm has no 8-bit float tensor cores"):
        linear(1, 64, 64, SiliconTimer("a100_sxm", "float8"))
    with pytest.raises(UsageError, match="float16, bfloat16, float8, not of 'float32'"):
        half.with_dtype("float32")


@pytest.mark.parametrize("name", gpu_names())
def test_every_gpu_answers_everything(name: str) -> None:
    target = silicon.find(name)
    assert target is not None
    assert target.timer is not None
    for operator in (
        Linear(m=1, n=128256, k=4096),
        Linear(m=777, n=3001, k=515),
        Attention(batch=3, query=1, context=999, heads=9, kv_heads=3, head_dim=64),
        Attention(batch=1, query=77, context=400, heads=12, kv_heads=12, head_dim=80),
        Elementwise(elements=12345),
        Launch(),
    ):
        found = target.timer.time(operator)
        assert 0.5 < found.microseconds < 5000
        assert 0 < found.spread < 1
        assert found.how
    assert target.rank_multiple in {8, 16}
    own = name in published.names()
    assert all(own != ("borrowed" in rule.source) for rule in target.rules)


def test_a_gpu_without_a_table_is_wholly_modelled() -> None:
    target = silicon.find("l4")
    assert target is not None
    assert target.timer is not None
    assert "publishes no measured products of l4" in target.notes[0]
    assert target.timer.time(Linear(m=512, n=4096, k=4096)).source == "model"


def test_without_the_package_the_rules_remain(monkeypatch: pytest.MonkeyPatch) -> None:
    _gpus.read_gpu.cache_clear()
    monkeypatch.setattr(_gpus, "PACKAGE", "no_such_package_here")
    target = silicon.find("l40s")
    assert target is not None
    assert target.timer is None
    assert "pip install 'snapfit[hardware]'" in target.notes[0]
    assert target.rank_multiple == 16
    with pytest.raises(SnapfitError, match=r"pip install 'snapfit\[hardware\]'"):
        SiliconTimer("l40s").time(Launch())


def test_a_missing_reader_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SnapfitError, match=r"need no_such_module: pip install"):
        _gpus.extra("no_such_module")
    assert silicon.find("no_such_gpu") is None
