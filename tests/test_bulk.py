"""Attribution of whole data sets, in one process: against plain calls of `relax.lrp`."""

import dataclasses
import functools
import json
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("grain", reason="extra `bulk` not installed")

import bulk_job
import filelock
from bulk_job import (
    BATCH,
    CHUNK,
    NOT_FINITE,
    SAMPLES,
    UNREADABLE,
    content,
    job,
    network,
    parameters,
)

import relax
from relax import bulk, methods, rules
from relax._errors import ArgumentError
from relax.bulk import StoreError
from relax.bulk._rounds import Machine, rounds

BAD = [UNREADABLE, NOT_FINITE]
ROWS = bulk_job.Data().rows


def explained(rows=ROWS, target="max", f=network, params=None):
    """Plain calls, in batches of the same samples."""
    lrp = jax.jit(relax.lrp(f, rules.Gamma(0.25), target=target))
    params = parameters() if params is None else params
    parts = [lrp(params, rows[i : i + BATCH]) for i in range(0, len(rows), BATCH)]
    return np.concatenate(parts)


def digest(store):
    return json.loads((Path(store) / ".relax" / "finished.json").read_text())["digest"]


def program(path, *words, status=0):
    """The job as a program of its own; what it printed."""
    run = subprocess.run(
        [sys.executable, bulk_job.__file__, str(path), *words], capture_output=True, text=True
    )
    assert run.returncode == status, run.stderr
    return run.stdout + run.stderr


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A store that nothing has disturbed; tests copy it."""
    path = tmp_path_factory.mktemp("bulk") / "whole.zarr"
    bulk.run(job(path))
    return path


@pytest.fixture
def copy(whole, tmp_path):
    return Path(shutil.copytree(whole, tmp_path / "copy.zarr"))


def test_it_is_what_plain_calls_give(whole):
    store = bulk.Store(whole)
    got, want = np.asarray(store["relevance"]), explained()
    good = [i for i in range(SAMPLES) if i not in BAD]
    np.testing.assert_allclose(got[good], want[good], rtol=1e-5, atol=1e-6)
    assert np.isnan(got[BAD]).all()
    index = np.asarray(store["top/index"])
    np.testing.assert_array_equal(index[good], np.argsort(-np.abs(got[good]), axis=1)[:, :2])
    np.testing.assert_array_equal(index[BAD], -1)
    strongest = np.take_along_axis(got[good], index[good], axis=1)
    np.testing.assert_array_equal(np.asarray(store["top/relevance"])[good], strongest)
    assert store.finished
    assert store.samples == SAMPLES
    assert store.damaged() == []


def test_bad_samples_are_listed_with_their_reason(whole):
    assert bulk.Store(whole).bad == [
        (UNREADABLE, "cannot be read: OSError: the disk has a scratch"),
        (NOT_FINITE, "is not finite"),
    ]


def test_the_summary_balances(tmp_path):
    summary = bulk.run(job(tmp_path / "s.zarr"))
    good = [i for i in range(SAMPLES) if i not in BAD]
    value = np.asarray(network(parameters(), ROWS[good])).max(1)
    np.testing.assert_allclose(summary.explained, value.sum(), rtol=1e-5)
    np.testing.assert_allclose(summary.received, explained()[good].sum(), rtol=1e-5)
    assert summary.absorbed == summary.explained - summary.received
    assert summary.computed == summary.samples == SAMPLES
    assert "2 bad samples" in str(summary)
    assert "the disk has a scratch" in str(summary)


def test_the_same_bits_on_any_number_of_devices(whole, tmp_path, monkeypatch):
    """The fixture ran on all four."""
    devices = jax.local_devices()
    for count in (1, 3):
        monkeypatch.setattr(jax, "local_devices", lambda count=count: devices[:count])
        path = tmp_path / f"{count}.zarr"
        bulk.run(job(path))
        assert content(path) == content(whole)


def test_it_is_traced_once_for_any_number_of_batches(tmp_path):
    def traces(samples):
        calls = []

        def counted(params, x):
            calls.append(x.shape)
            return network(params, x)

        bulk.run(job(tmp_path / f"{samples}.zarr", f=counted, data=ROWS[:samples], batch_size=2))
        return calls

    few, many = traces(2), traces(37)
    assert few == many


def test_nothing_is_computed_twice(copy):
    class Forbidden(bulk_job.Data):
        def __getitem__(self, index):
            assert index in {SAMPLES * i // 16 for i in range(16)} | {0, SAMPLES - 1}
            return super().__getitem__(index)

    before = content(copy)
    assert bulk.run(job(copy, data=Forbidden())).computed == 0
    assert content(copy) == before


@pytest.mark.parametrize("fault", ["flipped", "cut off", "gone", "record", "no record"])
def test_a_damaged_chunk_is_computed_again(copy, whole, fault):
    file = next(p for p in (copy / "relevance" / "c").rglob("*") if p.is_file())
    record = copy / ".relax" / "chunks" / "00000003.json"
    if fault == "flipped":
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 4
        file.write_bytes(data)
    elif fault == "cut off":
        file.write_bytes(file.read_bytes()[:-3])
    elif fault == "gone":
        file.unlink()
    elif fault == "record":
        record.write_text(record.read_text()[:20])
    else:
        record.unlink()
    assert len(bulk.Store(copy).damaged()) == 1
    assert bulk.run(job(copy)).computed == CHUNK
    assert content(copy) == content(whole)


def test_a_chunk_that_was_swapped_is_found(copy, whole):
    """Its own checksum is right."""
    first, second = sorted(p for p in (copy / "relevance" / "c").rglob("*") if p.is_file())[:2]
    one, two = first.read_bytes(), second.read_bytes()
    first.write_bytes(two)
    second.write_bytes(one)
    assert bulk.run(job(copy)).computed == 2 * CHUNK
    assert content(copy) == content(whole)


def other_parameters():
    params = parameters()
    kernel = params["head"]["kernel"]
    return {**params, "head": {"kernel": kernel.at[0, 0].add(1e-6)}}


def other_data():
    data = bulk_job.Data()
    data.rows[0, 0] += 1
    return data


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"params": other_parameters()}, "parameter head/kernel"),
        ({"rules": rules.Gamma(0.5)}, r"rule head: the store has dense: Gamma\(0.25"),
        ({"rules": rules.Epsilon()}, "rule hidden"),
        ({"data": other_data()}, "data sample 0: the store has"),
        ({"data": ROWS[:50]}, "samples: the store has 60, the job 50"),
        ({"f": lambda p, x: network(p, x) * 1.0001}, "program: the store has"),
        ({"target": 1}, "target: the store has 'max', the job 1"),
        ({"target": np.arange(SAMPLES) % 4}, "target"),
        ({"batch_size": 2}, "batch_size: the store has 3, the job 2"),
        ({"samples_per_chunk": 3}, "samples_per_chunk"),
        ({"keep": {"other": bulk.Relevance()}}, "array other: the job has float32"),
        ({"keep": {"relevance": bulk.Relevance("float16")}}, "array relevance"),
        ({"method": methods.saliency}, "method"),
        ({"dtype": "bfloat16"}, "dtype"),
        ({"version": "2"}, "version"),
    ],
)
def test_the_store_of_another_job_is_refused(copy, changes, named):
    before = content(copy)
    with pytest.raises(StoreError, match=named):
        bulk.run(job(copy, **changes))
    assert content(copy) == before


def test_other_versions_are_refused(copy, monkeypatch):
    monkeypatch.setattr(relax, "__version__", "0.0.1")
    with pytest.raises(StoreError, match=r"relax: the store has .*, the job 0\.0\.1"):
        bulk.run(job(copy))


def test_a_parameter_that_is_closed_over_is_compared(tmp_path):
    def of(scale):
        scale = jnp.full((1, 6), scale, jnp.float32)
        return lambda p, x: network(p, x * scale)

    bulk.run(job(tmp_path / "s.zarr", f=of(1.0)))
    with pytest.raises(StoreError, match="program"):
        bulk.run(job(tmp_path / "s.zarr", f=of(2.0)))


def test_a_constant_in_a_call_in_the_program_is_compared(tmp_path):
    def keep(constant):
        times = jax.jit(lambda relevance: relevance * constant)
        return {"relevance": lambda explained: times(explained.relevance)}

    bulk.run(job(tmp_path / "s.zarr", keep=keep(np.arange(6.0)[None])))
    with pytest.raises(StoreError, match="program"):
        bulk.run(job(tmp_path / "s.zarr", keep=keep(np.arange(1.0, 7.0)[None])))


def test_a_process_whose_run_is_over_writes_nothing(tmp_path):
    """It had no lock yet when its first process died and another run began."""
    from relax.bulk._team import Team

    team = Team.__new__(Team)
    team.index, team.count = 1, 2
    team._folder, team._run = tmp_path, "00"
    (tmp_path / "00-here.json").write_text("true")
    team.check()
    (tmp_path / "00-here.json").unlink()
    with pytest.raises(StoreError, match="Another run of the job has begun"):
        team.check()


def test_two_writers_are_refused(copy):
    from relax.bulk._manifest import lock

    held = lock(copy)
    with pytest.raises(StoreError, match="another run"):
        bulk.run(job(copy))
    held.release()
    bulk.run(job(copy))


def test_a_process_of_an_earlier_run_is_waited_for(copy, monkeypatch):
    """Its first process died, jax.distributed has not yet ended the others; or nobody does."""
    from relax.bulk import _manifest

    held = filelock.FileLock(copy / ".relax" / "lock-3", thread_local=False)
    held.acquire()
    threading.Timer(0.5, held.release).start()
    assert bulk.run(job(copy)).computed == 0
    assert not held.is_locked
    monkeypatch.setattr(_manifest, "_STRAGGLERS", 0.2)
    held = _manifest.lock(copy, 3)
    with pytest.raises(StoreError, match=r"process of an earlier run, which has lock-3"):
        bulk.run(job(copy))
    held.release()
    assert bulk.run(job(copy)).computed == 0


def test_what_a_killed_process_left_is_taken_away(copy):
    left = [
        copy / "relevance" / "c" / "0" / "0.__lock",
        copy / ".relax" / "chunks" / "00000001.json.tmp-77",
    ]
    for file in left:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"half")
    bulk.run(job(copy))
    assert not any(file.exists() for file in left)


@pytest.mark.more
@pytest.mark.skipif(sys.platform == "win32", reason="limits of the size of a file are of Unix")
def test_a_full_disk(tmp_path):
    """No file may have more than 100 bytes: then no chunk can be written."""
    path = tmp_path / "full.zarr"
    program(path)
    whole = content(path)
    for file in (path / "relevance" / "c").rglob("*"):
        if file.is_file():
            file.unlink()
    full = program(path, "--largest-file", "100", status=1)
    assert "StoreError" in full
    assert "Make room, and run the job again" in full
    assert not bulk.Store(path).finished
    assert "60 of them explained now" in program(path)
    assert content(path) == whole


@pytest.mark.parametrize("key", ["explained", "bad", "chunk"])
def test_a_record_that_was_changed_is_made_again(copy, whole, key):
    file = copy / ".relax" / "chunks" / "00000002.json"
    record = json.loads(file.read_text())
    record[key] = {"explained": record["explained"] + 1000, "bad": [[13, "mine"]]}.get(key, 3)
    file.write_text(json.dumps(record))
    assert not bulk.Store(copy).as_finished
    assert bulk.run(job(copy)).computed == CHUNK
    assert content(copy) == content(whole)
    assert bulk.Store(copy).as_finished


def test_targets_that_are_none_of_the_outputs(tmp_path):
    """They are bad samples; -1 is the last output, as in relax.lrp."""
    rows = np.nan_to_num(ROWS)[:6]
    targets = [0, 9, -1, -5, 2**40, 3]
    bulk.run(job(tmp_path / "s.zarr", data=list(zip(rows, targets, strict=True)), target="data"))
    store = bulk.Store(tmp_path / "s.zarr")
    none = "its target is none of the outputs"
    out = "cannot be read: ValueError: its target is 1099511627776"
    assert store.bad == [(1, none), (3, none), (4, out)]
    got = np.asarray(store["relevance"])
    good = [0, 2, 5]
    want = explained(rows[good], target=np.array([0, 3, 3]))
    np.testing.assert_allclose(got[good], want, rtol=1e-5, atol=1e-6)
    assert np.isnan(got[[1, 3, 4]]).all()
    with pytest.raises(ArgumentError, match="32 bits"):
        bulk.run(job(tmp_path / "t.zarr", data=rows, target=np.full(6, 2**40)))


def test_samples_that_could_not_be_read_are_tried_again_when_asked(tmp_path):
    """As after an outage; the store is then that of a run without one."""
    path, healthy = tmp_path / "s.zarr", bulk_job.Data(unreadable=())
    bulk.run(job(path))
    assert bulk.run(job(path, data=healthy)).computed == 0
    assert UNREADABLE in dict(bulk.Store(path).bad)
    summary = bulk.run(job(path, data=healthy), retry=True)
    assert summary.computed == CHUNK
    assert [index for index, _ in summary.bad] == [NOT_FINITE]
    bulk.run(job(tmp_path / "other.zarr", data=healthy))
    assert content(path) == content(tmp_path / "other.zarr")
    assert bulk.run(job(path, data=healthy), retry=True).computed == 0


def test_a_reason_is_the_same_in_each_run(tmp_path):
    class Broken(bulk_job.Data):
        def __getitem__(self, index):
            if index == 30:
                raise ValueError(f"cannot identify {object()!r}")
            return super().__getitem__(index)

    summary = bulk.run(job(tmp_path / "s.zarr", data=Broken()))
    reason = dict(summary.bad)[30]
    assert reason == "cannot be read: ValueError: cannot identify <object object>"


def test_a_sample_is_what_most_of_the_first_ones_are(tmp_path):
    rows = list(np.nan_to_num(ROWS)[:9])
    rows[0] = rows[0][:, None]
    bulk.run(job(tmp_path / "s.zarr", data=rows))
    bad = bulk.Store(tmp_path / "s.zarr").bad
    assert bad == [(0, "has another structure, shape or dtype: float32[6, 1]")]


def test_what_a_disk_gives_at_the_second_time(tmp_path, whole):
    """A sample is asked for again; one that stays out of reach does not make the data others."""

    class Shaky(bulk_job.Data):
        def __init__(self, index, failures):
            super().__init__()
            self.index, self.failures = index, failures

        def __getitem__(self, index):
            if index == self.index and self.failures:
                self.failures -= 1
                raise TimeoutError("try again")
            return super().__getitem__(index)

    bulk.run(job(tmp_path / "s.zarr", data=Shaky(20, 2)))
    assert content(tmp_path / "s.zarr") == content(whole)
    bulk.run(job(tmp_path / "t.zarr", data=Shaky(SAMPLES // 4, 10**6)))  # one of those compared
    assert bulk.run(job(tmp_path / "t.zarr")).computed == 0


def test_arrays_whose_names_nest(tmp_path):
    """A layer in a layer: an array is a folder, and no other can be in it."""
    params = {"a": {"kernel": jnp.eye(6), "b": {"kernel": jnp.eye(6)}}}
    f = lambda p, x: jax.nn.relu(x @ p["a"]["kernel"]) @ p["a"]["b"]["kernel"]
    path = tmp_path / "s.zarr"
    bulk.run(job(path, f=f, params=params, data=ROWS[:6], keep={"kept": bulk.Absorbed()}))
    names = bulk.Store(path).names
    assert "kept/a/self" in names
    assert "kept/a/b" in names


def test_an_array_with_the_name_of_a_temporary_file(tmp_path):
    keep = {"a.tmp-1": bulk.Relevance()}
    bulk.run(job(tmp_path / "s.zarr", keep=keep))
    assert bulk.run(job(tmp_path / "s.zarr", keep=keep)).computed == 0


def test_an_array_that_cannot_be_opened(copy):
    (copy / "relevance" / "zarr.json").write_text("{")
    for use in (lambda: bulk.run(job(copy)), lambda: bulk.Store(copy)["relevance"]):
        with pytest.raises(StoreError, match="'relevance' cannot be opened"):
            use()


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "damaged"),
        ("{}", "damaged"),
        ('{"format": 99}', "has format 99"),
        ("../outside", "outside of the store"),
        ("/etc", "outside of the store"),
        ("object", "damaged"),
    ],
)
def test_a_manifest_that_is_wrong_is_refused(copy, text, what):
    file = copy / ".relax" / "manifest.json"
    if text in ("../outside", "/etc", "object"):
        found = json.loads(file.read_text())
        if text == "object":
            found["arrays"]["relevance"][1] = "object"
        else:
            found["arrays"][text] = found["arrays"]["relevance"]
        text = json.dumps(found)
    file.write_text(text)
    for use in (lambda: bulk.run(job(copy)), lambda: bulk.Store(copy)):
        with pytest.raises(StoreError, match=what):
            use()


def test_a_link_out_of_the_store_is_refused(copy, tmp_path):
    shutil.move(copy / "relevance", tmp_path / "elsewhere")
    (copy / "relevance").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StoreError, match="outside of the store"):
        bulk.Store(copy)


@pytest.mark.parametrize("inner", [".relax", ".relax/chunks", "relevance/c", "relevance/c/0/0"])
def test_nothing_is_written_through_a_link(copy, tmp_path, inner):
    """What it leads to stays as it is."""
    outside = tmp_path / "outside"
    shutil.move(copy / inner, outside)
    (copy / inner).symlink_to(outside)
    before = content(outside) if outside.is_dir() else outside.read_bytes()
    with pytest.raises(StoreError, match="is a link"):
        bulk.run(job(copy))
    assert (content(outside) if outside.is_dir() else outside.read_bytes()) == before


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(StoreError, match="no store of relax"):
        bulk.run(job(tmp_path))
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(StoreError, match="no store"):
        bulk.Store(tmp_path / "nothing")


def test_nothing_is_unpickled():
    for file in Path(bulk.__file__).parent.glob("*.py"):
        words = file.read_text().replace("unpickled", "")
        assert "pickle" not in words
        assert "np.load" not in words
        assert "eval(" not in words


@pytest.mark.more
def test_what_is_kept(tmp_path):
    """Each kind, against its definition."""
    rows = ROWS[:16]
    keep = {
        "value": bulk.Value(),
        "total": bulk.Summed(None),
        "first": bulk.Summed(0),
        "half": bulk.Relevance("float16"),
        "hidden": bulk.Latent("hidden"),
        "kept": bulk.Absorbed(),
        "own": lambda e: {"positive": (e.relevance > 0).sum(1), "x": e.x},
    }
    path = tmp_path / "s.zarr"
    bulk.run(job(path, data=rows, keep=keep, target=2))
    store, params = bulk.Store(path), parameters()
    read = lambda name: np.asarray(store[name])
    relevance, latent = relax.lrp(network, rules.Gamma(0.25), target=2, at="hidden")(params, rows)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
    close(read("value"), network(params, rows))
    close(read("total"), relevance.sum(1))
    close(read("first"), relevance.sum(1))
    close(read("half"), relevance, rtol=1e-3)
    assert read("half").dtype == np.float16
    close(read("hidden/hidden"), latent["hidden"])
    np.testing.assert_array_equal(read("own/positive"), (np.asarray(relevance) > 0).sum(1))
    close(read("own/x"), rows)
    for index in (0, 11):
        _, account = relax.ledger(network, rules.Gamma(0.25), target=2)(params, rows[index][None])
        for entry in account:
            close(read(f"kept/{entry.path}")[index], entry.kept)


def test_half_precision(tmp_path):
    """Inputs are cast, and what is kept is stored so."""
    rows, params = ROWS[:6], jax.tree.map(lambda a: a.astype(jnp.bfloat16), parameters())
    keep = {"r": bulk.Relevance(), "x": lambda e: e.x, "y": bulk.Value()}
    path = tmp_path / "s.zarr"
    bulk.run(job(path, data=rows, params=params, keep=keep, dtype="bfloat16"))
    store = bulk.Store(path)
    assert {np.asarray(store[name]).dtype for name in store.names} == {jnp.dtype("bfloat16")}
    np.testing.assert_array_equal(np.asarray(store["x"]), rows.astype(jnp.bfloat16))
    want = network(params, rows.astype(jnp.bfloat16))
    np.testing.assert_array_equal(np.asarray(store["y"]), want)
    assert bulk.run(job(path, data=rows, params=params, keep=keep, dtype="bfloat16")).computed == 0


@pytest.mark.parametrize("source", ["array", "data"])
def test_a_target_for_each_sample(tmp_path, source):
    targets = np.arange(len(ROWS)) % 4
    rows = np.nan_to_num(ROWS)
    data = list(zip(rows, targets, strict=True)) if source == "data" else rows
    path = tmp_path / "s.zarr"
    bulk.run(job(path, data=data, target="data" if source == "data" else targets))
    lrp = relax.lrp(network, rules.Gamma(0.25), target=targets)
    want = lrp(parameters(), rows)
    got = np.asarray(bulk.Store(path)["relevance"])
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_a_method_instead_of_rules(tmp_path):
    method = functools.partial(methods.integrated_gradients, steps=4)
    bulk.run(job(tmp_path / "s.zarr", method=method, data=ROWS[:8], target=0))
    got = np.asarray(bulk.Store(tmp_path / "s.zarr")["relevance"])
    want = method(network, target=0)(parameters(), ROWS[:8])
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
    other = functools.partial(methods.integrated_gradients, steps=5)
    with pytest.raises(StoreError, match=r"method: .*steps=4.*steps=5"):
        bulk.run(job(tmp_path / "s.zarr", method=other, data=ROWS[:8], target=0))


def test_samples_of_several_arrays_from_grain(tmp_path):
    import grain

    rows = np.nan_to_num(ROWS)[:10]
    data = grain.MapDataset.source(rows).map(lambda r: {"a": r[:2], "b": r[2:]})
    f = lambda p, x: network(p, jnp.concatenate([x["a"], x["b"]], axis=1))
    bulk.run(job(tmp_path / "s.zarr", f=f, data=data, keep={"r": bulk.Relevance()}))
    store = bulk.Store(tmp_path / "s.zarr")
    got = np.concatenate([store["r/a"], store["r/b"]], axis=1)
    np.testing.assert_allclose(got, explained(rows), rtol=1e-5, atol=1e-6)


def test_samples_that_are_not_alike_and_relevance_that_is_not_finite(tmp_path):
    rows = list(np.nan_to_num(ROWS)[:9])
    rows[2] = rows[2][:5]
    rows[4] = rows[4].astype(np.float64)
    rows[6] = np.full(6, 3e38, np.float32)  # finite, but not what is made of it
    rows[7] = None
    bulk.run(job(tmp_path / "s.zarr", data=rows))
    store = bulk.Store(tmp_path / "s.zarr")
    assert store.bad == [
        (2, "has another structure, shape or dtype: float32[5]"),
        (4, "has another structure, shape or dtype: float64[6]"),
        (6, "its relevance is not finite"),
        (
            7,
            "cannot be read: ValueError: the data source gives None, as for a sample that is "
            "filtered out",
        ),
    ]
    good = [0, 1, 3, 5, 8]
    want = explained(np.stack([rows[i] for i in good]))
    got = np.asarray(store["relevance"])
    np.testing.assert_allclose(got[good], want, rtol=1e-5, atol=1e-6)
    assert np.isnan(got[[2, 4, 6, 7]]).all()


def test_other_libraries_read_the_store(whole):
    zarr = pytest.importorskip("zarr")
    array = zarr.open_group(str(whole), mode="r")["relevance"]
    np.testing.assert_array_equal(array[:], np.asarray(bulk.Store(whole)["relevance"]))


def test_tokens_are_explained(tmp_path):
    """Relevance of integers is a number for each."""
    table = jnp.asarray(np.random.default_rng(2).normal(size=(11, 6)), jnp.float32)
    f = lambda p, x: network(p["network"], p["table"][x].sum(1))
    params = {"network": parameters(), "table": table}
    tokens = np.random.default_rng(3).integers(0, 11, (12, 5))
    bulk.run(
        job(tmp_path / "s.zarr", f=f, params=params, data=tokens, keep={"r": bulk.Relevance()})
    )
    want = explained(tokens, f=f, params=params)
    got = np.asarray(bulk.Store(tmp_path / "s.zarr")["r"])
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "error", "named"),
    [
        ({"f": 3}, ArgumentError, r"Job\(f=3\)"),
        ({"batch_size": 0}, ArgumentError, "batch_size"),
        ({"store": "gs://bucket/s.zarr"}, ArgumentError, "mount the bucket"),
        ({"keep": {"zarr.json": bulk.Relevance()}}, ArgumentError, "no name of an array"),
        ({"keep": {"a": lambda e: e.relevance + 1j}}, ArgumentError, "cannot be stored"),
        ({"samples_per_chunk": 4}, ArgumentError, "multiple of batch_size=3"),
        ({"data": iter([1])}, ArgumentError, "an iterator cannot be resumed"),
        ({"data": []}, ArgumentError, "0 samples"),
        ({"data": [None, None]}, ArgumentError, "none of the first 2 samples can be read"),
        ({"target": np.arange(3)}, ArgumentError, "one integer for each of the 60"),
        ({"target": "top"}, ArgumentError, '"max" or "data"'),
        ({"target": 9}, relax.TargetError, "9"),
        ({"keep": {}}, ArgumentError, "keep"),
        ({"keep": {"../a": bulk.Relevance()}}, ArgumentError, "no name of an array"),
        ({"keep": {"a": 3}}, ArgumentError, "no kind of relax.bulk.Keep"),
        ({"keep": {"a": lambda e: e.relevance.sum()}}, ArgumentError, "samples of the batch"),
        ({"keep": {"a": bulk.TopK(7)}}, ArgumentError, "a sample has 6 features"),
        ({"keep": {"a": bulk.Summed(1)}}, ArgumentError, "a sample has 1 axes"),
        (
            {"method": methods.saliency, "keep": {"a": bulk.Absorbed()}},
            ArgumentError,
            "rules alone",
        ),
        ({"rules": {"nothing": rules.ZPlus()}}, relax.UnmatchedSelectorError, "nothing"),
    ],
)
def test_a_job_that_is_wrong_writes_nothing(tmp_path, changes, error, named):
    with pytest.raises(error, match=named):
        bulk.run(job(**({"store": tmp_path / "s.zarr"} | changes)))
    assert not (tmp_path / "s.zarr").exists()


def test_an_error_of_the_function_is_raised(tmp_path):
    def broken(params, x):
        raise ValueError("my own")

    with pytest.raises(ValueError, match="my own"):
        bulk.run(job(tmp_path / "s.zarr", f=broken))


@pytest.mark.parametrize("form", ["orbax", "safetensors"])
@pytest.mark.parametrize("sharded", [False, True])
def test_restore(tmp_path, form, sharded):
    from jax.sharding import NamedSharding
    from jax.sharding import PartitionSpec as P

    params = parameters()
    if form == "orbax":
        ocp = pytest.importorskip("orbax.checkpoint")
        path = tmp_path / "checkpoint"
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(path, params)
    else:
        numpy = pytest.importorskip("safetensors.numpy")
        path = tmp_path / "model.safetensors"
        flat = {f"{n}.kernel": np.asarray(p["kernel"]) for n, p in params.items()}
        numpy.save_file(flat, path)
    like = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), params)
    if not sharded:
        for got in (bulk.restore(path), bulk.restore(path, like)):
            jax.tree.map(np.testing.assert_array_equal, got, params)
        return
    mesh = jax.make_mesh((4,), ("model",))
    split = NamedSharding(mesh, P("model"))
    shardings = {
        "hidden": {"kernel": NamedSharding(mesh, P(None, "model"))},
        "head": {"kernel": split},
    }
    got = bulk.restore(path, like, shardings)
    jax.tree.map(np.testing.assert_array_equal, got, params)
    assert got["head"]["kernel"].sharding.is_equivalent_to(split, 2)
    assert got["head"]["kernel"].addressable_shards[0].data.shape == (2, 4)
    wrong = {**like, "head": {"kernel": jax.ShapeDtypeStruct((8, 5), jnp.float32)}}
    with pytest.raises(ArgumentError, match="restore"):
        bulk.restore(path, wrong, split)


@pytest.fixture
def in_two_files(tmp_path):
    """A folder as large models come in."""
    numpy = pytest.importorskip("safetensors.numpy")
    places = {}
    for number, (name, part) in enumerate(parameters().items(), 1):
        file = f"model-0000{number}-of-00002.safetensors"
        numpy.save_file({f"{name}.kernel": np.asarray(part["kernel"])}, tmp_path / file)
        places[f"{name}.kernel"] = file
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return index


def test_restore_through_links(in_two_files, tmp_path):
    """As in a cache of Hugging Face: names that lead to files named by their digests."""
    links = tmp_path / "links"
    links.mkdir()
    for number, file in enumerate(sorted(in_two_files.parent.glob("model*"))):
        blob = file.rename(tmp_path / f"blob{number}")
        (links / file.name).symlink_to(blob)
    for path in (links, links / in_two_files.name):
        jax.tree.map(np.testing.assert_array_equal, bulk.restore(path), parameters())


def test_restore_of_several_files(in_two_files):
    for path in (in_two_files.parent, in_two_files):
        jax.tree.map(np.testing.assert_array_equal, bulk.restore(path), parameters())


@pytest.mark.parametrize(
    ("spoil", "what"),
    [
        (lambda index: (index.parent / "model-00002-of-00002.safetensors").unlink(), "00002.*read"),
        (lambda index: index.write_text("{"), "damaged"),
        (lambda index: index.write_text('{"weight_map": {"a": "../a.safetensors"}}'), "beside it"),
        (lambda index: index.write_text(index.read_text().replace("head", "tail")), "tail.kernel"),
        (lambda index: index.unlink(), "2 files of safetensors and 0 indices"),
    ],
    ids=["lost", "damaged", "elsewhere", "names", "no index"],
)
def test_restore_refuses_files_that_are_not_all_there(in_two_files, spoil, what):
    spoil(in_two_files)
    with pytest.raises(ArgumentError, match=what):
        bulk.restore(in_two_files.parent)


def test_restore_refuses(tmp_path):
    with pytest.raises(ArgumentError, match="is not there"):
        bulk.restore(tmp_path / "nothing")
    (tmp_path / "weights.pkl").write_bytes(b"cos\nsystem\n")
    with pytest.raises(ArgumentError, match=r"no \.safetensors file"):
        bulk.restore(tmp_path / "weights.pkl")


@pytest.mark.parametrize(
    "holders",
    [
        ((0,),),
        ((0,),) * 4,
        ((0,), (0,), (1,), (1,)),
        ((0, 1),),
        ((0, 1), (0, 1), (2, 3)),
        ((0,), (1,), (0,), (1,), (1,)),
    ],
    ids=["one device", "four", "two processes", "one batch of two", "pairs", "uneven"],
)
@pytest.mark.parametrize("todo", [[], [0], [9], [1, 2, 3, 5, 8], list(range(10))])
def test_each_batch_is_computed_once_and_each_chunk_comes_to_one_process(holders, todo):
    """Whatever the places of a call are: by going through all calls, as each process does."""
    samples, prepared = 58, SimpleNamespace(chunk=CHUNK, job=SimpleNamespace(batch_size=BATCH))
    prepared.samples = SimpleNamespace(count=samples)
    written = {}
    for call in rounds(todo, prepared, holders):
        assert len(call) == len(holders)
        assert min(call) < samples
        for place, start in enumerate(call):
            if start < samples:
                chunk = start // CHUNK
                writers = [
                    process
                    for process in range(4)
                    if Machine(holders, None, None, None).writes(place, chunk, process)
                ]
                written.setdefault(chunk, []).append((start, *writers))
    assert sorted(written) == todo
    for chunk, parts in written.items():
        first, last = chunk * CHUNK, min(samples, (chunk + 1) * CHUNK)
        assert [start for start, *_ in parts] == list(range(first, last, BATCH))
        assert len({tuple(writers) for _, *writers in parts}) == 1
        assert {len(writers) for _, *writers in parts} == {1}


def test_a_mesh_with_sharded_parameters(whole, tmp_path):
    """In one process; the sums of the hidden layer are taken apart, so they round otherwise."""
    from bulk_job import over_mesh

    bulk.run(over_mesh(tmp_path / "mesh.zarr", 0.0))
    got, want = bulk.Store(tmp_path / "mesh.zarr"), bulk.Store(whole)
    for name in ("relevance", "top/relevance"):
        np.testing.assert_allclose(got[name], want[name], rtol=1e-4, atol=1e-5)
    assert got.bad == want.bad
    assert bulk.run(over_mesh(tmp_path / "mesh.zarr", 0.0)).computed == 0
    made = over_mesh(tmp_path / "mesh.zarr", 0.0)
    whole_on_each = jax.device_put(made.params, jax.NamedSharding(made.mesh, jax.P()))
    for changes, named in (
        ({"params": whole_on_each}, "sharding hidden/kernel"),
        ({"data_axes": ("data", "model")}, "mesh"),
    ):
        with pytest.raises(StoreError, match=named):
            bulk.run(dataclasses.replace(made, **changes))
    mesh = jax.make_mesh((4,), ("data",))
    with pytest.raises(ArgumentError, match="is not on the mesh"):
        bulk.run(job(tmp_path / "other.zarr", mesh=mesh))
    with pytest.raises(ArgumentError, match="data_axes"):
        bulk.run(job(tmp_path / "other.zarr", mesh=mesh, data_axes="batch"))


def test_a_mesh_without_a_process_is_refused(tmp_path, monkeypatch):
    from bulk_job import over_mesh

    from relax.bulk._job import Prepared
    from relax.bulk._rounds import over_mesh as machine

    made = over_mesh(tmp_path / "mesh.zarr", 0.0)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(ArgumentError, match="devices of process 0, of 2"):
        machine(Prepared(made), made.mesh)
