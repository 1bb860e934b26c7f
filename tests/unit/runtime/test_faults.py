"""What goes wrong on devices, in callbacks and in processes: no hang, no abort, no lost or swapped result."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import numpy as np
import openvino as ov
import pytest

from edgeface.errors import EngineClosed, InferenceError
from edgeface.runtime import Engine

pytestmark = pytest.mark.timeout(120)
SOON = 10
ROOT = Path(__file__).resolve().parents[3]
VIRTUAL = ["CPU", "AUTO:CPU", "HETERO:CPU"]

PRELUDE = """
import os, signal, sys, threading, time
import numpy as np, openvino as ov
try:
    from openvino import opset13 as ops
except ImportError:
    from openvino.runtime import opset13 as ops
from edgeface.errors import EngineClosed
from edgeface.runtime import Engine
x = ops.parameter([1, 16], np.float32)
core = ov.Core()
compiled = core.compile_model(ov.Model([ops.multiply(x, ops.constant(np.float32(2)))], [x], "m"), "CPU")
row = lambda n: np.full(16, n, np.float32)
"""


def run(script: str, *, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    """Run a script in a fresh interpreter; a hang is a failure."""
    return subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", PRELUDE + textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


@pytest.mark.parametrize("name", VIRTUAL)
def test_failed_inference_is_its_own_futures_error_and_the_engine_goes_on(device, board, row, name):
    board.fails |= {3, 4, 7}
    with Engine(device(name), requests=2) as engine:
        futures = [engine.submit(row(n)) for n in range(1, 10)]
        for n, future in enumerate(futures, start=1):
            if n in board.fails:
                with pytest.raises(InferenceError, match=f"the device fails on {n}"):
                    future.result(SOON)
            else:
                np.testing.assert_array_equal(future.result(SOON), row(n))
        assert (engine.counters().failed, engine.counters().done) == (3, 6)


def test_failed_batch_fails_only_its_own_requests(device, board, row):
    board.fails.add(2)
    board.gate.clear()
    with Engine({n: device(batch=n) for n in (1, 2)}, requests=1) as engine:
        futures = [engine.submit(row(n)) for n in range(1, 6)]
        board.gate.set()
        outcomes = [future.exception(SOON) is None for future in futures]
    assert outcomes == [True, False, False, True, True]


def test_device_that_disappears_fails_every_request_and_hangs_none(device, board, row):
    with Engine(device(), requests=2, queue_depth=4) as engine:
        assert engine.submit(row(1)).result(SOON)[0] == 1
        board.fails_always = True
        for _ in range(20):
            with pytest.raises(InferenceError):
                engine.submit(row(2)).result(SOON)
        board.fails_always = False
        assert engine.submit(row(3)).result(SOON)[0] == 3


def test_request_that_cannot_be_started_fails_and_frees_its_slot(double, row, monkeypatch):
    """The injected fault: OpenVINO refuses to start, as it does when a device was unplugged."""
    with Engine(double(), requests=1) as engine:
        request = type(engine._schedule.slots[0]._active)
        original = request.start_async

        def refuse(self, *arguments, **options):
            raise RuntimeError("[GPU] CL_DEVICE_NOT_AVAILABLE")

        monkeypatch.setattr(request, "start_async", refuse)
        with pytest.raises(InferenceError, match="CL_DEVICE_NOT_AVAILABLE"):
            engine.submit(row(1)).result(SOON)
        monkeypatch.setattr(request, "start_async", original)
        assert engine.submit(row(2)).result(SOON)[0] == 4


def test_model_that_cannot_run_says_so_at_the_first_request(device, board, row):
    board.fails_always = True
    with Engine(device()) as engine:
        with pytest.raises(InferenceError, match="the device fails on 1"):
            engine.infer(row(1))
        with pytest.raises(InferenceError, match="the device fails on 2"):
            engine.submit(row(2)).result(SOON)


@pytest.mark.slow
def test_only_a_request_that_never_ran_has_a_latency_of_0(double, row):
    """What `Slot.verdict` relies on."""
    for name in ("CPU", "AUTO:CPU", "HETERO:CPU", "BATCH:CPU(2)"):
        request = double(device=name).create_infer_request()
        assert (request.wait_for(0), request.latency) == (False, 0.0)
        request.start_async()
        assert request.wait_for(0) or request.latency != 0.0
        request.wait()
        assert request.wait_for(0)


@pytest.mark.parametrize("raised", [ValueError, SystemExit, KeyboardInterrupt])
def test_callback_that_raises_stays_where_it_is(double, row, caplog, raised):
    def bad(future):
        raise raised("from a user's callback")

    with caplog.at_level(logging.ERROR), Engine(double(), requests=1) as engine:
        for n in range(20):
            future = engine.submit(row(n))
            future.add_done_callback(bad) if not future.done() else None
            assert future.result(SOON)[0] == 2 * n
        assert engine.submit(row(50)).result(SOON)[0] == 100


def test_error_while_results_are_read_is_the_futures_error(double, row, monkeypatch):
    """The injected fault: the output cannot be copied, as when memory runs out."""
    with Engine(double(), requests=1) as engine:
        slot = type(engine._schedule.slots[0])
        original = slot.read
        monkeypatch.setattr(slot, "read", lambda self: (_ for _ in ()).throw(MemoryError("no memory")))
        with pytest.raises(InferenceError, match="no memory"):
            engine.submit(row(1)).result(SOON)
        monkeypatch.setattr(slot, "read", original)
        assert engine.submit(row(2)).result(SOON)[0] == 4


def test_sigint_in_map_ends_it_cleanly_and_the_engine_serves_on():
    done = run(
        """
        with Engine(compiled, requests=2) as engine:
            threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
            def endless():
                n = 0
                while True:
                    yield row(n); n += 1
            try:
                for result in engine.map(endless()):
                    pass
            except KeyboardInterrupt:
                print("interrupted")
            print(engine.submit(row(21)).result(10)[0])
        """
    )
    assert (done.returncode, done.stdout.split()) == (0, ["interrupted", "42.0"]), done.stderr


LOOPS = {
    "map": "for n, result in enumerate(engine.map(row(n) for n in range(10**9))):",
    "submit": "for n, result in ((n, engine.submit(row(n)).result(20)) for n in range(10**9)):",
    "infer": "for n, result in ((n, engine.infer(row(n))) for n in range(10**9)):",
    "run_batches": "for n, result in ((n, engine.run_batches([row(n)[None]])[0][0][0]) for n in range(10**9)):",
}


@pytest.mark.slow
@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("hits", [200, pytest.param(1000, marks=pytest.mark.nightly)])
def test_interrupts_lose_no_slot_and_no_request(loop, hits):
    """Ctrl-C at any point leaves an engine that still has all its requests."""
    done = run(
        """
        engine = Engine(compiled, requests=2, queue_depth=4)
        stop = threading.Event()
        wrong, answered = [], [0]
        def client():
            n = 0
            while not stop.is_set():
                n += 1
                if engine.submit(row(n)).result(20)[0] != 2 * n:
                    wrong.append(n)
                answered[0] += 1
        other = threading.Thread(target=client); other.start()
        hits, inside = 0, False
        def interrupt(*_):
            if inside:  # not between two rounds of the loop below, where nothing would catch it
                raise KeyboardInterrupt
        signal.signal(signal.SIGINT, interrupt)
        def pester():
            while hits < HITS or answered[0] <= 10:
                time.sleep(0.001 * np.random.random())
                os.kill(os.getpid(), signal.SIGINT)
            stop.set()
        pest = threading.Thread(target=pester)
        pest.start()
        while not stop.is_set():
            try:
                inside = True
                LOOP
                    if result[0] != 2 * n:
                        wrong.append(n)
            except KeyboardInterrupt:
                inside = False
                hits += 1
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        pest.join(20); other.join(30)
        assert not other.is_alive(), "a request was lost"
        futures = [engine.submit(row(n)) for n in range(200)]
        assert [f.result(20)[0] for f in futures] == [2 * n for n in range(200)]
        assert not wrong, wrong
        assert engine.infer(row(7))[0] == 14
        engine._schedule.reap()
        assert not any(slot.jobs for slot in engine._schedule.slots)
        engine.close()
        print("sound")
        """.replace("LOOP", LOOPS[loop]).replace("HITS", str(hits)),
        timeout=110,
    )
    assert (done.returncode, done.stdout.strip()) == (0, "sound"), done.stderr


@pytest.mark.parametrize(
    "ending", ["futures[0].result(10)", "engine = futures = None", "raise SystemExit(0)", "del engine"]
)
def test_process_exits_cleanly_with_an_open_engine(ending):
    done = run(
        f"""
        engine = Engine(compiled, requests=4)
        futures = [engine.submit(row(n)) for n in range(50)]
        {ending}
        """
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.slow
@pytest.mark.skipif(ov.__version__ < "2025", reason="OpenVINO 2024 has no operations written in Python")
def test_process_exits_although_the_device_hangs():
    done = run(
        """
        class Hang(ov.Op):
            def __init__(self, inputs=None): super().__init__(self, inputs)
            def validate_and_infer_types(self): self.set_output_type(0, ov.Type.f32, ov.PartialShape([1, 16]))
            def clone_with_new_inputs(self, inputs): return Hang(inputs)
            def has_evaluate(self): return True
            def evaluate(self, outputs, inputs):
                if inputs[0].data[0, 0]:
                    time.sleep(1000)
                inputs[0].copy_to(outputs[0])
                return True
        y = ops.parameter([1, 16], np.float32)
        engine = Engine(core.compile_model(ov.Model([ops.result(Hang([y]).output(0))], [y], "h"), "CPU"), requests=1)
        future = engine.submit(row(1))
        engine.close(timeout=0.2)
        print(type(future.exception(0)).__name__)
        sys.stdout.flush()
        os._exit(0) if "--quit" in sys.argv else None
        """,
        timeout=40,
    )
    assert done.stdout.strip() == "EngineClosed"
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.parametrize("leave", ["os._exit(0)", "sys.exit(0)"])
def test_forked_child_is_told_and_does_not_hang(leave):
    done = run(
        f"""
        engine = Engine(compiled, requests=2)
        engine.submit(row(1)).result(10)
        futures = [engine.submit(row(n)) for n in range(8)]
        child = os.fork()
        if child == 0:
            try:
                engine.submit(row(2))
            except EngineClosed as error:
                print(error); sys.stdout.flush()
            futures[0].cancel()
            engine.close()
            del engine, futures
            {leave}
        _, status = os.waitpid(child, 0)
        print(status, engine.submit(row(3)).result(10)[0])
        engine.close()
        """
    )
    assert "spawn" in done.stdout, done.stderr
    assert done.stdout.splitlines()[-1] == "0 6.0", done.stdout + done.stderr
    assert done.returncode == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_forked_child_may_load_its_own():
    done = run(
        """
        engine = Engine(compiled, requests=2)
        engine.submit(row(1)).result(10)
        child = os.fork()
        if child == 0:
            y = ops.parameter([1, 16], np.float32)
            mine = ov.Core().compile_model(ov.Model([ops.relu(y)], [y], "m"), "CPU")
            with Engine(mine) as own:
                ok = own.submit(row(2)).result(10)[0] == 2
            os._exit(0 if ok else 1)
        for _ in range(200):
            pid, status = os.waitpid(child, os.WNOHANG)
            if pid:
                break
            time.sleep(0.1)
        else:
            os.kill(child, signal.SIGKILL)
            status = "hung"
        print(status)
        """
    )
    assert done.stdout.split() == ["0"], done.stderr


@pytest.mark.slow
def test_spawned_child_loads_its_own(tmp_path):
    script = tmp_path / "spawned.py"
    script.write_text(
        PRELUDE
        + textwrap.dedent(
            """
            import multiprocessing
            def work(n):
                with Engine(compiled, requests=1) as engine:
                    return float(engine.submit(row(n)).result(10)[0])
            if __name__ == "__main__":
                with Engine(compiled) as engine, multiprocessing.get_context("spawn").Pool(1) as pool:
                    print(pool.apply(work, (4,)), engine.submit(row(1)).result(10)[0])
            """
        )
    )
    done = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.stdout.split() == ["8.0", "2.0"], done.stderr


def test_close_from_a_callback_does_not_wait_for_itself(double, row):
    engine = Engine(double(), requests=1)
    engine.submit(row(1)).add_done_callback(lambda _: engine.close())
    until = time.monotonic() + SOON
    while not engine.closed and time.monotonic() < until:
        time.sleep(0.01)
    assert engine.closed
    with pytest.raises(EngineClosed):
        engine.submit(row(2))


def test_submit_and_close_race_resolves_every_future(double, row):
    for _ in range(30):
        engine = Engine(double(), requests=2, queue_depth=4)
        futures = []

        def client(engine=engine, futures=futures):
            try:
                while True:
                    futures.append(engine.submit(row(1)))
            except EngineClosed:
                pass

        clients = [threading.Thread(target=client) for _ in range(4)]
        for each in clients:
            each.start()
        time.sleep(0.01)
        engine.close(drain=False)
        for each in clients:
            each.join(SOON)
            assert not each.is_alive()
        for future in futures:
            assert future.done()
