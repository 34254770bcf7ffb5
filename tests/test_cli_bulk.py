"""``python -m relax run`` and ``show``, against the store they write and read."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("grain", reason="extra `bulk` not installed")
pytest.importorskip("click", reason="extra `cli` not installed")

import bulk_job
from click.testing import CliRunner

from relax import bulk
from relax.cli._app import app

JOB = """
import sys
sys.path.insert(0, {tests!r})
import bulk_job, numpy as np
from relax import bulk

settings = dict(batch_size=4, samples_per_chunk=8)
job = bulk_job.job({store!r}, **settings)

def pictures():
    f = lambda params, x: (x * params["w"]).sum((1, 2))
    data = np.arange(6 * 5 * 4 * 3, dtype=np.float32).reshape(6, 5, 4, 3) - 100
    params = {{"w": np.ones((1, 5, 4, 3), np.float32)}}
    keep = {{"relevance": bulk.Relevance()}}
    return bulk_job.job({store!r} + "2", f=f, params=params, data=data, keep=keep)

nothing = 3
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "job.py"
    tests = str(Path(bulk_job.__file__).parent)
    path.write_text(JOB.format(tests=tests, store=str(tmp_path / "s.zarr")))
    return path


def call(*words, status=0):
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == status, result.output
    return result.output


def test_a_job_runs_and_is_shown(file, tmp_path):
    dry = call("run", file, "--dry-run")
    assert "60 samples in 8 chunks of 8, batches of 4" in dry
    assert "relevance: float32 60x6" in dry
    assert not (tmp_path / "s.zarr").exists()
    assert "60 of them explained now" in call("run", file)
    assert "0 of them explained now" in call("run", file)
    store = bulk.Store(tmp_path / "s.zarr")
    shown = call("show", tmp_path / "s.zarr", "--verify")
    assert "60 samples, finished" in shown
    assert "missing or damaged: none" in shown
    for index, reason in store.bad:
        assert f"{index}: {reason}" in shown
    assert "hidden: dense: Gamma(0.25)" in shown
    row = np.asarray(store["relevance"][3])
    lines = call("show", tmp_path / "s.zarr", "--sample", 3, "--top", 2).splitlines()
    assert f"in all {row.sum():.6g}" in lines[0]
    order = np.argsort(-np.abs(row))[:2]
    assert [f"[{i}]  {row[i]:+.6g}" in line for i, line in zip(order, lines[1:], strict=True)] == [
        True,
        True,
    ]


def test_a_store_that_is_not_finished_or_damaged(file, tmp_path):
    call("run", file)
    (tmp_path / "s.zarr" / ".relax" / "chunks" / "00000002.json").unlink()
    (tmp_path / "s.zarr" / ".relax" / "finished.json").unlink()
    refused = call("show", tmp_path / "s.zarr", "--sample", 18, status=2)
    assert "has not been computed yet" in refused
    shown = call("show", tmp_path / "s.zarr", "--verify")
    assert "not finished: run its job again" in shown
    assert "missing or damaged: 2" in shown


def test_heatmaps(file, tmp_path):
    """Relevance of a weight of one is the input: negative at first, positive at last."""
    Image = pytest.importorskip("PIL.Image")
    call("run", file, "--name", "pictures")
    out = tmp_path / "map.png"
    call("show", tmp_path / "s.zarr2", "--sample", 0, "--output", out)
    first = np.asarray(Image.open(out)).astype(int)
    call("show", tmp_path / "s.zarr2", "--sample", 5, "--output", out)
    last = np.asarray(Image.open(out)).astype(int)
    assert first.shape == last.shape == (5, 4, 3)
    assert first[0, 0, 2] > first[0, 0, 0]
    assert last[0, 0, 0] > last[0, 0, 2]
    call("show", tmp_path / "s.zarr2", "--sample", 0, "--sample", 5, "--output", out)
    assert np.asarray(Image.open(out)).shape[1] > 8


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (("run", "{file}", "--name", "nothing"), "is no relax.bulk.Job, but a int"),
        (("run", "{file}", "--name", "absent"), "makes nothing called 'absent'"),
        (("run", "nowhere.py"), "nowhere.py is not there"),
        (("run", "{file}", "--processes", "2"), "go together"),
        (("show", "{folder}/none.zarr"), "is no store of relax"),
        (("show", "{store}", "--sample", "60"), "the store has 60, from 0 on"),
        (("show", "{store}", "--sample", "17"), "the disk has a scratch"),
        (("show", "{store}", "--sample", "1", "--array", "x"), "has no array 'x'"),
        (("show", "{store}", "--sample", "1", "--output", "{folder}/x.png"), "is no picture"),
        (("show", "{store}", "--sample", "1", "--output", "x.jpg"), "does not end in .png"),
        (("show", "{store}", "--output", "x.png"), "goes with --sample"),
    ],
)
def test_what_is_refused(file, tmp_path, words, what):
    store = tmp_path / "s.zarr"
    if "{store}" in words:
        bulk.run(bulk_job.job(store))
    given = [w.format(file=file, folder=tmp_path, store=store) for w in words]
    assert what in call(*given, status=2)


@pytest.mark.more
def test_a_process_of_its_own(file):
    run = subprocess.run(
        [sys.executable, "-m", "relax", "run", str(file)],
        cwd=Path(__file__).resolve().parents[1],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert "60 of them explained now" in run.stdout
    assert "explaining" not in run.stderr
