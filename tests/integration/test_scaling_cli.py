"""`snapfit scaling` and `snapfit traces` from end to end: killed, resumed, broken, refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from completions_server import Misdeed, fails, hangs, says, serving

from snapfit.checkpoint.load import load, load_tokenizer
from snapfit.cli.app import run
from snapfit.evals.generators.hf import TransformersGenerator
from snapfit.evals.generators.openai_server import ServerGenerator
from snapfit.evals.records import Thought, read_records
from snapfit.models.source import open_model
from snapfit.pipeline import respondent

TASKS = "embedded:facts,embedded:short,embedded:long"
SMALL = ["--budgets", "24,72", "--samples", "2", "--limit", "6", "--answer-tokens", "4"]
Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    def call(*arguments: object) -> tuple[int, str, str]:
        code = run([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return code, out, err

    return call


@pytest.fixture(scope="session")
def shallow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model without its fourth layer."""
    from dropped_layer import without_layer

    return without_layer(tmp_path_factory.mktemp("shallow") / "shallow", 3)


@pytest.fixture(scope="session")
def finished(shallow: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of both models. Do not write into it."""
    folder = tmp_path_factory.mktemp("run") / "run"
    code = run([*command(folder, shallow), "--json"])
    assert code == 0
    return folder


def command(folder: Path, *models: object, tasks: str = TASKS) -> list[str]:
    named = [str(model) for model in models]
    return ["scaling", *named, "--against", "embedded", "--tasks", tasks, *SMALL, "-o", str(folder)]


def summary(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return found


def without_time(value: Any) -> Any:
    """A summary without what differs from run to run."""
    if isinstance(value, dict):
        return {key: without_time(entry) for key, entry in value.items() if "seconds" not in key}
    return [without_time(entry) for entry in value] if isinstance(value, list) else value


def lines(folder: Path) -> dict[str, int]:
    return {
        str(path.relative_to(folder)): path.read_bytes().count(b"\n")
        for path in sorted(folder.glob("*/*.jsonl"))
    }


def test_a_run_from_end_to_end(finished: Path, cli: Cli) -> None:
    assert lines(finished) == {
        f"{model}/embedded-{task}.jsonl": count
        for model in ("embedded", "shallow")
        for task, count in (("facts", 6), ("long", 12 * 3), ("short", 12 * 3))
    }
    found = summary(finished)
    base = found["models"]["embedded"]
    assert base["tasks"]["embedded-facts"]["accuracy"][0]["value"] > 0.8
    long = base["tasks"]["embedded-long"]
    assert long["accuracy"][1]["value"] > long["accuracy"][0]["value"]
    assert found["settings"]["delimiters"]["shallow"]["end"] == "</think>"
    verdict = found["models"]["shallow"]["verdict"]
    assert set(verdict["families"]) == {"knowledge", "shallow", "long"}
    assert verdict["families"]["long"]["needed"] != 0  # six problems settle nothing ...
    assert verdict["families"]["knowledge"]["label"] == "not enough samples to say"
    for record in read_records(finished / "shallow" / "embedded-long.jsonl"):
        if isinstance(record, Thought):
            assert len(record.ids) <= 72


def test_rescoring_reads_the_lines_only(finished: Path, cli: Cli) -> None:
    before = summary(finished)
    (finished / "summary.json").unlink()
    code, out, _ = cli("scaling", "--rescore", finished)
    assert code == 0
    assert summary(finished) == before
    assert max(len(line) for line in out.splitlines() if not line.startswith("report:")) <= 80
    rows = [line for line in out.splitlines() if "embedded-long" in line]
    assert len(rows) == 2  # one a model; its other budgets follow below
    assert "shallow: " in out
    page = (finished / "scaling.html").read_text()
    assert "embedded-long: accuracy against the budget" in page
    assert page.count("<svg") == 5  # the last: families against layers removed
    assert "<script" not in page
    assert 'src="http' not in page


def test_a_finished_run_asks_nothing_again(finished: Path, cli: Cli, shallow: Path) -> None:
    before = lines(finished)
    code, out, err = cli(*command(finished, shallow), "--json")
    assert code == 0
    assert lines(finished) == before
    assert "think" not in err
    assert json.loads(out)["models"].keys() == {"embedded", "shallow"}


def test_a_run_of_another_question_is_refused(finished: Path, cli: Cli, shallow: Path) -> None:
    other = [*command(finished, shallow)]
    for option, value, named in (
        ("--budgets", "24,80", "another sampling: {'budgets'"),
        ("--limit", "5", "another tasks: "),
        ("--tasks", "embedded:facts", "another tasks: "),
    ):
        changed = list(other)
        changed[changed.index(option) + 1] = value
        code, _, err = cli(*changed)
        assert code == 1
        assert f"holds a run with {named}" in err
        assert "use another folder" in err
    assert summary(finished)["settings"]["sampling"]["budgets"] == [24, 72]


def test_a_killed_run_goes_on_to_the_same_summary(
    finished: Path, shallow: Path, tmp_path: Path, cli: Cli
) -> None:
    folder = tmp_path / "killed"
    killed = 0
    for lines_before_the_kill in (1, 40):
        process = subprocess.Popen(
            [sys.executable, "-m", "snapfit", *command(folder, shallow)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        while process.poll() is None and sum(lines(folder).values()) < lines_before_the_kill:
            time.sleep(0.02)
        killed += process.poll() is None
        os.kill(process.pid, signal.SIGKILL)
        process.wait(30)
        assert not (folder / "summary.json").exists()
    assert killed == 2
    kept = {path: path.read_bytes() for path in folder.glob("*/*.jsonl")}
    code, _, _ = cli(*command(folder, shallow))
    assert code == 0
    for path, data in kept.items():
        whole = data[: data.rfind(b"\n") + 1]
        assert path.read_bytes().startswith(whole)
    assert lines(folder) == lines(finished)
    assert without_time(summary(folder)) == without_time(summary(finished))


@contextmanager
def server(misdeeds: list[Misdeed], monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The embedded model served, misbehaving first; clients that do not wait for long."""
    path = open_model("embedded").path
    generator = TransformersGenerator(load(path), eos=frozenset({2}))

    def impatient(*arguments: Any, **options: Any) -> ServerGenerator:
        return ServerGenerator(
            *arguments, **options, attempts=4, first_wait=0.01, timeout=2.0, parallel=2
        )

    monkeypatch.setattr(respondent, "ServerGenerator", impatient)
    with serving(generator, load_tokenizer(path), misdeeds=misdeeds) as url:
        yield url


def ask_server(cli: Cli, url: str, folder: Path) -> tuple[int, str, str]:
    plain = command(folder, tasks="embedded:short")
    return cli(*plain, "--backend", f"openai:{url}")


def test_a_server_that_stumbles_loses_nothing(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finished: Path
) -> None:
    misdeeds = [fails(500), says("garbage"), fails(503), hangs(3), says({"choices": []})]
    with server(misdeeds, monkeypatch) as url:
        code, _, err = ask_server(cli, url, tmp_path / "run")
    assert code == 0, err
    found, local = (
        summary(folder)["models"]["embedded"] for folder in (tmp_path / "run", finished)
    )
    assert without_time(found["tasks"]["embedded-short"]) == without_time(
        local["tasks"]["embedded-short"]
    )


def test_a_server_that_dies_is_reported_and_the_run_goes_on_later(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"

    def well(_: object) -> bool:
        return False

    with server([*[well] * 5, *[fails(500)] * 50], monkeypatch) as url:
        code, _, err = ask_server(cli, url, folder)
        kept = lines(folder)["embedded/embedded-short.jsonl"]
        assert code == 1
        assert "failed 4 times, last with: status 500" in err
        assert "what was generated so far is kept" in err
        assert kept >= 4
        backend = json.loads((folder / "settings.json").read_text())["backend"]
        assert backend == f"openai:{url}"
        again, _, err = ask_server(cli, url, folder)
        assert again == 1
        assert lines(folder)["embedded/embedded-short.jsonl"] >= kept
    with server([], monkeypatch) as url:
        # The same server at another port is still the same question.
        code, _, err = ask_server(cli, url, folder)
        assert code == 0, err
    assert lines(folder)["embedded/embedded-short.jsonl"] == 12 * 3


def test_traces_of_a_run(finished: Path, cli: Cli, tmp_path: Path) -> None:
    page = tmp_path / "traces.html"
    code, out, err = cli("traces", finished, "--html", page, "--json")
    assert code == 0, err
    found = json.loads(out)
    assert {(row["model"], row["task"]) for row in found["rows"]} == {
        (model, f"embedded-{task}")
        for model in ("embedded", "shallow")
        for task in ("short", "long")
    }
    by_model = {(row["model"], row["task"]): row for row in found["anatomies"]}
    whole, less = (by_model[model, "embedded-long"] for model in ("embedded", "shallow"))
    assert less["rate"] > whole["rate"]
    assert sum(less["failed"]) + less["overrun"] == less["wrong"]
    divergence, _ = found["drift"]["divergence (nats)"]["shallow"]
    assert len(divergence) == 16
    assert min(divergence) >= 0
    assert max(divergence) > 0.01
    assert len(found["layers"]["shallow"]) == 8  # the embedding and seven layers
    assert found["layers"]["shallow"][0] == pytest.approx(1.0)
    assert page.read_text().count("<svg") == 4
    code, out, _ = cli("traces", finished)
    assert code == 0
    assert "ran on" in out
    assert max(len(line) for line in out.splitlines()) <= 80


def test_a_run_that_never_began_may_still_be_changed(cli: Cli, tmp_path: Path) -> None:
    small = ["--tasks", "embedded:short", "--limit", "1", "--samples", "1", "-o", tmp_path / "run"]
    code, _, err = cli("scaling", "embedded", *small)
    assert (code, "give at most --budgets" in err) == (2, True)
    code, _, err = cli("scaling", "embedded", *small, "--budgets", "16", "--answer-tokens", "4")
    assert code == 0, err
    assert summary(tmp_path / "run")["settings"]["sampling"]["budgets"] == [16]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["scaling"], "name at least one model"),
        (["scaling", "embedded"], "--tasks and -o DIR are needed"),
        (
            ["scaling", "embedded", "--tasks", "embedded:long", "-o", "X"],
            "give at most --budgets 178",
        ),
        (["scaling", "embedded", "--tasks", "embedded:x", "-o", "X"], "no family 'x'"),
        (["scaling", "embedded", "--tasks", "a", "-o", "X", "--budgets", "9,5"], "increasing"),
        (["scaling", "embedded", "--tasks", "a", "-o", "X", "--temperature", "0"], "--samples 1"),
        (["scaling", "embedded", "--tasks", "a", "-o", "X", "--backend", "x"], "unknown backend"),
        (
            ["scaling", "embedded", "--tasks", "a", "-o", "X", "--backend", "openai:x"],
            "'x' is no address of a server",
        ),
        (["scaling", ".", "--tasks", "embedded:long", "-o", "X"], "has no config.json"),
        (["scaling", "--rescore", "nowhere"], "holds no run of snapfit scaling"),
        (["traces", "nowhere"], "no traces at nowhere"),
    ],
)
def test_what_cannot_be_asked_is_one_line(
    arguments: list[str], said: str, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = cli(*arguments)
    assert code in {1, 2}
    assert "" not in err.splitlines(), "no empty line before the error"
    last = err.splitlines()[-1]
    assert last.startswith("error: ")
    assert said in last
    assert not any(path.stat().st_size for path in tmp_path.rglob("*.jsonl")), "nothing was asked"
