"""Runs that are killed, in one process and in several, against one that nothing has disturbed."""

import os
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

pytest.importorskip("grain", reason="extra `bulk` not installed")
if sys.platform == "win32":
    pytest.skip("SIGKILL is of Unix", allow_module_level=True)

import bulk_job
from bulk_job import CHUNK, SAMPLES, content

from relax import bulk

CHUNKS = SAMPLES // CHUNK
ENVIRONMENT = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"} | {"JAX_PLATFORMS": "cpu"}


def start(path, *words):
    return subprocess.Popen(
        [sys.executable, bulk_job.__file__, str(path), *map(str, words)],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def start_two(path, *words, second=()):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    common = ("--processes", 2, "--port", port, "--devices", 2, *words)
    return [start(path, "--process", 0, *common), start(path, "--process", 1, *common, *second)]


def ended(*running, status=0):
    texts = [process.communicate(timeout=300)[0] for process in running]
    assert all(process.returncode == status for process in running), texts
    return texts


def finished(path):
    return len(list((path / ".relax" / "chunks").glob("*.json")))


def wait_for(path, chunks, running):
    """Until so many are finished."""
    deadline = time.monotonic() + 300
    while finished(path) < chunks:
        assert running.poll() is None, running.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    path = tmp_path_factory.mktemp("faults") / "whole.zarr"
    ended(start(path))
    return content(path)


def test_killed_again_and_again(tmp_path, undisturbed):
    """At any moment: chunks that are finished stay, the rest comes in the next run."""
    path = tmp_path / "killed.zarr"
    for chunks in (1, 3, 6):
        running = start(path, "--slow", 0.15)
        wait_for(path, chunks, running)
        running.send_signal(signal.SIGKILL)
        running.communicate()
        assert not bulk.Store(path).finished
    there = finished(path)
    text = ended(start(path))[0]
    assert f"{SAMPLES - there * CHUNK} of them explained now" in text
    assert content(path) == undisturbed


def test_killed_before_there_is_a_store(tmp_path, undisturbed):
    path = tmp_path / "early.zarr"
    running = start(path)
    while not path.exists():
        assert running.poll() is None
        time.sleep(0.001)
    running.send_signal(signal.SIGKILL)
    running.communicate()
    ended(start(path))
    assert content(path) == undisturbed


@pytest.mark.more
def test_two_processes_and_one_of_them_killed(tmp_path, undisturbed):
    """The other one ends as well; one process alone finishes what both have begun."""
    path = tmp_path / "two.zarr"
    both = start_two(path, "--slow", 0.1)
    wait_for(path, 2, both[0])
    both[1].send_signal(signal.SIGKILL)
    for process in both:
        process.communicate(timeout=300)
        assert process.returncode != 0
    there = finished(path)
    assert 2 <= there < CHUNKS
    text = ended(start(path))[0]
    assert f"{SAMPLES - there * CHUNK} of them explained now" in text
    assert content(path) == undisturbed


@pytest.mark.more
def test_two_processes_go_on_with_what_one_has_begun(tmp_path, undisturbed):
    path = tmp_path / "one.zarr"
    running = start(path, "--slow", 0.15)
    wait_for(path, 3, running)
    running.send_signal(signal.SIGKILL)
    running.communicate()
    texts = ended(*start_two(path))
    assert all("2 bad samples" in text for text in texts)
    assert content(path) == undisturbed


@pytest.mark.more
def test_a_second_writer_is_refused(tmp_path):
    path = tmp_path / "busy.zarr"
    running = start(path, "--slow", 1)
    wait_for(path, 1, running)
    assert "is being written by another run" in ended(start(path), status=1)[0]
    running.kill()
    running.communicate()


@pytest.mark.more
def test_all_processes_are_told_that_the_store_is_of_another_job(tmp_path):
    path = tmp_path / "other.zarr"
    bulk.run(bulk_job.job(path, batch_size=2))
    texts = ended(*start_two(path), status=1)
    assert all("batch_size: the store has 2, the job 3" in text for text in texts)


@pytest.mark.more
def test_processes_of_different_parameters_are_refused(tmp_path):
    texts = ended(*start_two(tmp_path / "odd.zarr", second=("--scale", 2)), status=1)
    assert all("parameter head/kernel: the store has float32" in text for text in texts)


@pytest.mark.slow
def test_processes_that_do_not_share_the_folder(tmp_path):
    """The second looks for a minute for what the first has written."""
    one, two = tmp_path / "one.zarr", tmp_path / "two.zarr"
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    words = ("--processes", 2, "--port", port)
    both = [start(one, "--process", 0, *words), start(two, "--process", 1, *words)]
    texts = ended(*both, status=1)
    assert all("of process 1 is not the folder of process 0" in text for text in texts)


@pytest.mark.slow
@pytest.mark.parametrize("shared", ["data", "model"])
def test_a_mesh_over_two_processes(tmp_path, undisturbed, shared):
    """The hidden layer is split over devices, so it rounds otherwise; killed, and run again.

    Each process writes half of the chunks: its own batches, or of batches that both compute.
    """
    path, again = tmp_path / "mesh.zarr", tmp_path / "again.zarr"
    texts = ended(*start_two(path, "--mesh", shared))
    assert all(f"{SAMPLES // 2} of them explained now" in text for text in texts)
    want = bulk.Store(path)
    both = start_two(again, "--mesh", shared, "--slow", 0.1)
    wait_for(again, 2, both[0])
    both[0].send_signal(signal.SIGKILL)
    for process in both:
        process.communicate(timeout=300)
    ended(*start_two(again, "--mesh", shared))
    assert content(again) == content(path)
    plain = tmp_path / "plain.zarr"
    ended(start(plain))
    for name in ("relevance", "top/relevance"):
        one, two = np.asarray(want[name]), np.asarray(bulk.Store(plain)[name])
        np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-5)
    assert content(plain) == undisturbed


@pytest.mark.slow
def test_a_sample_that_one_of_two_processes_cannot_read(tmp_path):
    """Of batches that both compute: it is bad for both, whichever of them writes its chunk."""
    whole, path = tmp_path / "whole.zarr", tmp_path / "path.zarr"
    ended(*start_two(whole, "--mesh", "model"))
    lost = (20, 27)  # in chunks of process 1 and of process 0
    ended(*start_two(path, "--mesh", "model", second=("--unreadable", *lost)))
    one, two = bulk.Store(whole), bulk.Store(path)
    assert two.bad == sorted(
        [*one.bad, *((index, dict(two.bad)[index]) for index in lost)], key=lambda pair: pair[0]
    )
    assert all("cannot be read" in dict(two.bad)[index] for index in lost)
    left = np.delete(np.arange(SAMPLES), lost)
    got, want = np.asarray(two["relevance"]), np.asarray(one["relevance"])
    np.testing.assert_array_equal(got[left], want[left])
    assert np.isnan(got[list(lost)]).all()


@pytest.mark.slow
def test_killed_at_random(tmp_path, undisturbed):
    """Twelve times, one process or the other, at whatever moment."""
    rng, path = np.random.default_rng(0), tmp_path / "random.zarr"
    for _ in range(12):
        both = start_two(path, "--slow", 0.02)
        time.sleep(rng.uniform(1, 12))
        both[rng.integers(2)].send_signal(signal.SIGKILL)
        for process in both:
            process.communicate(timeout=300)
    ended(start(path))
    assert content(path) == undisturbed
