"""What holds for every test: a time limit a folder, no network, no traces in the user's home."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pytest

SECONDS = {
    "unit": 60,
    "contract": 120,
    "numerics": 120,
    "integration": 300,
    "serving": 600,
}

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("MPLBACKEND", "Agg")

with contextlib.suppress(ImportError):  # where vLLM is served, only what that needs is installed
    from hypothesis import HealthCheck, settings

    # How long an example takes says how busy the machine is, and nothing of the code.
    settings.register_profile(
        "untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow]
    )
    settings.load_profile("untimed")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give each test its folder's time limit, unless it has one of its own."""
    root = Path(__file__).parent
    for item in items:
        folder = item.path.relative_to(root).parts[0] if root in item.path.parents else ""
        if folder in SECONDS and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(SECONDS[folder]))


@pytest.fixture(autouse=True, scope="session")
def _work_folder(tmp_path_factory: pytest.TempPathFactory) -> None:
    os.environ["SNAPFIT_WORK"] = str(tmp_path_factory.mktemp("work"))
