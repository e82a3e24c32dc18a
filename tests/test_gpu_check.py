"""The GPU tool, rehearsed on the CPU: what it measures, what it notices, and that it keeps to its time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from contextlib import nullcontext
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import zoo
from tests.kernels.test_backends import OPERATIONS

SCRIPTS = Path(zoo.__file__).parents[1] / "scripts"


@pytest.fixture(autouse=True)
def _scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(SCRIPTS)


def _run(out: Path, seconds: float = 60, **changes: object):
    from gpu.run import Run

    settings = {
        "out": str(out),
        "started": "now",
        "deadline": time.time() + seconds,
        "device": "cpu",
        "operations": OPERATIONS,
        "case": "",
        "batch": 2,
        "models": (),
        "size": 32,
        "jobs": 1,
    }
    return Run(**settings | changes)


def _rows(out: Path, kind: str) -> list[dict]:
    rows = [json.loads(line) for line in (out / "rows.jsonl").read_text().splitlines()]
    return [row for row in rows if row["kind"] == kind]


def _check(out: Path, operation: str, dtype: str) -> str:
    from gpu.correctness import check

    return check(_run(out), operation, import_module(f"zoo.kernels.{operation}.cases").AWKWARD[0], dtype, 2)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_right_kernels_are_right_and_a_planted_error_is_caught(
    operation: str, dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert _check(tmp_path, operation, dtype) == ""
    rows = _rows(tmp_path, "correctness")
    assert {row["result"] for row in rows} >= {"out", "q", "k", "v"}
    assert all(row["right"] for row in rows)

    native = import_module(f"zoo.kernels.{operation}.native")
    forward, backward = native.forward, native.backward
    with monkeypatch.context() as patch:
        patch.setattr(native, "forward", lambda *a: (lambda out, lse: (out * 1.02, lse))(*forward(*a)))
        assert "out is off by" in _check(tmp_path, operation, dtype)
    with monkeypatch.context() as patch:
        patch.setattr(native, "backward", lambda *a: (lambda q, k, *rest: (q, k * 1.02, *rest))(*backward(*a)))
        assert "k is off by" in _check(tmp_path, operation, dtype)


def test_one_wrong_position_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    native = import_module("zoo.kernels.window_attention.native")
    forward = native.forward

    def planted(*arguments: object) -> tuple[torch.Tensor, torch.Tensor]:
        out, lse = forward(*arguments)
        out[0, 3, 4, 0] *= 2
        return out, lse

    monkeypatch.setattr(native, "forward", planted)
    assert "out is off by" in _check(tmp_path, "window_attention", "bfloat16")


def test_uninitialised_memory_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    native = import_module("zoo.kernels.window_attention.native")
    backward = native.backward

    def planted(*arguments: object) -> tuple[torch.Tensor, ...]:
        dq, *rest = backward(*arguments)
        unwritten = torch.empty_like(dq)
        dq[:, -1] = unwritten[:, -1]
        return dq, *rest

    monkeypatch.setattr(native, "backward", planted)
    assert "q is off by nan" in _check(tmp_path, "window_attention", "float32")


def test_units_of_work(tmp_path: Path) -> None:
    def fail() -> None:
        raise ValueError("no memory")

    run = _run(tmp_path, seconds=5)
    run.unit(0.01, lambda: None, case="good")
    run.unit(0.01, lambda: "off by 2 %", case="bad")
    run.unit(0.01, fail, case="broken")
    run.unit(0.01, lambda: time.sleep(5), case="hangs")
    run.unit(9.0, lambda: None, case="long")
    found = {row["case"]: (row["status"], row["note"]) for row in _rows(tmp_path, "unit")}
    assert found["good"] == ("done", "")
    assert found["bad"] == ("wrong", "off by 2 %")
    assert found["broken"] == ("failed", "ValueError: no memory")
    assert found["hangs"][0] == "slow"
    assert found["long"][0] == "skipped"
    assert [row["case"] for row in _rows(tmp_path, "begun")] == ["good", "bad", "broken", "hangs"]
    run.unit(0.01, fail, case="good")  # as by a process that goes on for one that died
    assert [row["case"] for row in _rows(tmp_path, "unit")].count("good") == 1


@pytest.mark.parametrize("lost", [True, False])
def test_a_process_ends_with_its_gpu_and_with_nothing_less(
    lost: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bench import measure

    monkeypatch.setattr(measure, "gpu_is_lost", lambda: lost)
    with pytest.raises(SystemExit) if lost else nullcontext():
        _run(tmp_path).unit(0.1, lambda: torch._assert(False, "CUDA error: invalid configuration"), case="broken")
    assert [row["status"] for row in _rows(tmp_path, "unit")] == ["failed"]


def test_a_slow_unit_is_wrong_and_one_that_the_end_cuts_is_not(tmp_path: Path) -> None:
    _run(tmp_path, seconds=30).unit(0.05, lambda: time.sleep(5), case="slow")
    _run(tmp_path, seconds=0.3).unit(0.2, lambda: time.sleep(5), case="cut")
    assert [row["status"] for row in _rows(tmp_path, "unit")] == ["slow", "stopped"]


@pytest.mark.slow
def test_rehearsal(tmp_path: Path) -> None:
    """As on a GPU: kernels are compiled for one that is not there, and the C++ kernels stand in for them."""
    phases = "compile:25,correctness,kernels:15,tune:1,peers:1,families:1,models:1"
    command = [sys.executable, "scripts/gpu_check.py", "--device", "cpu", "--seconds", "55", "--out", str(tmp_path)]
    command += ["--phase", phases, "--operation", "window_attention", "--case", "stage 3 grid", "--size", "32"]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    start = time.time()
    done = subprocess.run(command, cwd=SCRIPTS.parent, env=environment, capture_output=True, text=True)
    assert done.returncode == 2, done.stdout + done.stderr + (tmp_path / "log.txt").read_text()
    assert "NOTHING DONE: tune, peers, families, models:" in done.stdout
    assert time.time() - start < 57

    units = _rows(tmp_path, "unit")
    assert {unit["phase"] for unit in units} == {part.partition(":")[0] for part in phases.split(",")}
    for phase in ("compile", "correctness", "kernels"):
        assert any(unit["phase"] == phase and unit["status"] == "done" for unit in units), phase
    assert all(row["right"] for row in _rows(tmp_path, "correctness"))
    assert "did not fit: models" in done.stdout
    from gpu.summary import write_tables

    assert write_tables(tmp_path, tmp_path) == 2  # rows of a rehearsal are no rows of a GPU
    assert not (tmp_path / "kernels.csv").exists()
    assert write_tables(tmp_path, tmp_path, on="cpu") == 0
    assert (tmp_path / "kernels.csv").read_text().count("native") == len(_rows(tmp_path, "kernels"))
    assert "maxvit_tiny_tf_224 stage 3 grid" in (tmp_path / "gpu.md").read_text()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    command = [sys.executable, "scripts/gpu_check.py", "--out", str(tmp_path), "--seconds", "30"]
    done = subprocess.run(command, cwd=SCRIPTS.parent, capture_output=True, text=True)
    assert done.returncode == 1
    assert "PyTorch finds no GPU; --device cpu rehearses" in done.stderr
    assert "Traceback" not in done.stderr


def test_unknown_names_are_refused() -> None:
    wrong = ("--phase compile,corectness", "--operation window", "--phase compile:soon", "--device gpu", "--model nat")
    for option, name in map(str.split, (*wrong, f"--out {__file__}", "--seconds inf")):
        command = [sys.executable, "scripts/gpu_check.py", option, name]
        done = subprocess.run(command, cwd=SCRIPTS.parent, capture_output=True, text=True)
        assert done.returncode == 2
        assert "Traceback" not in done.stderr


class StandIn:
    """As much of `torch.cuda` as a timer needs, with a clock of its own: an eager call takes 90 us, its kernels 30."""

    def __init__(self, captures: bool) -> None:
        self.now, self.captures = 0.0, captures  # milliseconds
        stand_in = self

        class Event:
            def __init__(self, enable_timing: bool) -> None:
                assert enable_timing

            def record(self) -> None:
                self.at = stand_in.now

            def elapsed_time(self, later: Event) -> float:
                return later.at - self.at

        class CUDAGraph:
            def replay(self) -> None:
                stand_in.now += 0.030

        class Stream:
            def wait_stream(self, other: Stream) -> None:
                pass

        self.Event, self.CUDAGraph, self.Stream, self.current_stream = Event, CUDAGraph, Stream, Stream
        self.stream, self.synchronize = lambda stream: nullcontext(), lambda: None
        self.mode = "default"

    def graph(self, graph: object):
        assert self.captures
        return nullcontext()

    def set_sync_debug_mode(self, mode: str) -> None:
        self.mode = mode

    def call(self) -> None:
        if self.mode == "error" and not self.captures:
            raise RuntimeError("called a synchronizing CUDA operation")
        self.now += 0.090


@pytest.mark.parametrize("captures", [True, False])
def test_kernels_are_timed_without_their_host(captures: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    from bench import measure

    cuda = StandIn(captures)
    monkeypatch.setattr(measure, "L2_BYTES", 16)
    monkeypatch.setattr(measure, "time", SimpleNamespace(perf_counter=lambda: cuda.now / 1e3))
    monkeypatch.setattr(
        measure, "torch", SimpleNamespace(cuda=cuda, uint8=torch.uint8, empty=lambda n, **_: torch.empty(n))
    )
    time = measure.gpu_time(cuda.call)
    assert time.eager == pytest.approx(90e-6)
    assert time.kernels == pytest.approx(30e-6 if captures else 90e-6)
    assert time.captured == captures


def test_rows_of_several_runs(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """The last run is shown, all are kept, once each, and a line that was torn is left out."""
    from gpu.summary import summarise, write_tables

    profile = {"operation": "window_attention", "case": "one", "mode": "forward", "kernel": "_forward", "us": 3.0}
    for started, status in (("yesterday", "failed"), ("today", "done")):
        run = _run(tmp_path, started=started)
        run.write("machine", on="cuda", date=started, device=f"card of {started}", torch="2", triton="3", zoo="1")
        run.write("unit", phase="kernels", operation="all", case="", provider="", status=status, seconds=1, note="")
        run.write("profile", **profile)
    with (tmp_path / "rows.jsonl").open("a") as file:
        file.write('5\nnull\n{"kind": "unit"}\n{"kind": "unit", "ru')
    assert summarise(run.rows(), ["kernels"]) == 0
    assert summarise(run.rows(), ["kernels", "peers"]) == 2
    assert "NOTHING DONE: peers" in capsys.readouterr().out
    for _ in range(2):
        write_tables(tmp_path, tmp_path)
    kept = (tmp_path / "profile.csv").read_text().splitlines()
    assert [line.split(",")[1] for line in kept] == ["device", "card of yesterday", "card of today"]


def test_a_worker_that_dies_before_its_turn_costs_its_part_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gpu import conductor

    worker = conductor.Conductor._worker

    def planted(self, phase, part):
        started = worker(self, phase, part)
        if phase == "kernels":
            started.kill()
        return started

    monkeypatch.setattr(conductor.Conductor, "_worker", planted)
    run = _run(tmp_path, seconds=60, operations=("window_attention",), case="no such case")
    conductor.Conductor(run).play([("kernels", 20.0), ("correctness", 20.0)])
    failed = {row["phase"] for row in _rows(tmp_path, "unit") if row["status"] == "failed"}
    assert failed == {"kernels"}
    assert {row["phase"] for row in _rows(tmp_path, "phase")} == {"machine", "kernels", "correctness"}


CRASHES = """
import os
import sys
from importlib import import_module

if "correctness" in sys.orig_argv:
    native = import_module("zoo.kernels.window_attention.native")
    forward = native.forward
    native.forward = lambda q, *rest: os.abort() if q.shape[1:3] == (9, 13) else forward(q, *rest)
"""
"""A kernel that takes its process with it at one shape."""


@pytest.mark.slow
def test_a_crash_costs_one_case(tmp_path: Path) -> None:
    """The next process goes on after it, and the case is named."""
    (tmp_path / "sitecustomize.py").write_text(CRASHES)
    out = tmp_path / "out"
    command = [sys.executable, "scripts/gpu_check.py", "--device", "cpu", "--seconds", "90", "--out", str(out)]
    command += ["--phase", "correctness", "--operation", "window_attention"]
    done = subprocess.run(
        command, cwd=SCRIPTS.parent, env=os.environ | {"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True
    )
    assert done.returncode == 1, done.stdout + done.stderr
    units = _rows(out, "unit")
    assert [unit["case"] for unit in units if unit["status"] == "failed"] == ["odd map"]
    assert sum(unit["status"] == "done" for unit in units) > 5


def test_workers_end_with_the_tool(tmp_path: Path) -> None:
    """A signal ends all processes, sums up, and is told by the exit status."""
    command = [sys.executable, "scripts/gpu_check.py", "--device", "cpu", "--out", str(tmp_path), "--seconds", "100"]
    tool = subprocess.Popen(command, cwd=SCRIPTS.parent, stdout=subprocess.PIPE, text=True)
    started = _children_of(tool.pid, 2)
    tool.terminate()
    shown, _ = tool.communicate(timeout=30)
    assert tool.returncode == 143
    assert "NOTHING DONE" in shown
    assert not any(Path(f"/proc/{child}").exists() for child in started)


def _children_of(process: int, count: int) -> list[int]:
    """Wait for so many processes that it has started."""
    for _ in range(300):
        time.sleep(0.1)
        found = Path(f"/proc/{process}/task/{process}/children").read_text().split()
        if len(found) >= count:
            return [int(child) for child in found]
    raise AssertionError("it has started no workers")
