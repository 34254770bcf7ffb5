"""A run: from a job to its finished store, over whatever happened to runs before."""

from __future__ import annotations

import collections
import os
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import numpy as np

from relax._errors import StoreError
from relax.bulk import _manifest
from relax.bulk._files import Files, remove_temporary
from relax.bulk._job import Job, Prepared
from relax.bulk._rounds import Machine, local, over_mesh, rounds
from relax.bulk._samples import GOOD, NOT_FINITE_RELEVANCE, REASONS, Batch
from relax.bulk._team import Team
from relax.bulk._watch import Summary, Watch, log

_IN_FLIGHT = 2  # calls that wait for their device while the next ones are prepared
_WRITES = 8  # chunks that wait for the disk
_WRITERS = min(8, max(2, os.cpu_count() or 2))
_LOOK_EVERY = 10.0  # seconds, whether another process has failed


def run(job: Job) -> Summary:
    """Explains a whole data set, and writes what is kept to the job's store.

    What a run before has finished is not computed again: end it whenever you like, in any way, and
    run the job again. The results are, to the bit, those of a run that nothing has disturbed, on
    any number of devices and processes (with ``mesh``: on the same mesh). Chunks on disk are read
    and compared with their checksums first; one that is damaged is computed again.

    Args:
      job: what is explained, and how; on each process the same.

    Returns:
      A `Summary`.

    Raises:
      ArgumentError, TargetError, ...: the job cannot be run; nothing has been written.
      StoreError: the store is of another job, and the differences; another run is writing it; the
        disk is full, or a file cannot be written; another process gave up.

    Example:
      >>> import jax.numpy as jnp, numpy as np, pathlib, tempfile, relax
      >>> def f(params, x):
      ...     return x @ params["w"]
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     job = relax.bulk.Job(
      ...         f=f, params={"w": jnp.eye(3)}, rules=relax.rules.Epsilon(0.0), target=0,
      ...         data=np.ones((10, 3), np.float32), batch_size=4,
      ...         store=pathlib.Path(folder) / "ones.zarr",
      ...     )
      ...     summary = relax.bulk.run(job)
      ...     store = relax.bulk.Store(job.store)
      ...     print(store.finished, np.asarray(store["relevance"][8]), summary.explained)
      True [1. 0. 0.] 10.0
    """
    prepared = Prepared(job)
    team = Team(prepared.path)
    files = Files(prepared.path, prepared.samples.count, prepared.chunk, prepared.arrays, True)
    try:
        watch = _run(prepared, files, team)
    except OSError as error:
        team.fail(error)
        raise StoreError(
            f"{files.path} cannot be written: {error}.\n"
            "  What is finished is safe. Make room, and run the job again."
        ) from error
    except BaseException as error:
        team.fail(error)
        raise
    return _summary(files, watch)


def _run(prepared: Prepared, files: Files, team: Team) -> Watch:
    """All of a run, under the lock of the store."""
    mesh = prepared.job.mesh
    machine = local(prepared) if mesh is None else over_mesh(prepared, mesh)
    made_of = prepared.made_of()
    held = None
    try:
        if team.leads:
            try:
                held, whole = _open(files, made_of)
            except Exception as error:
                team.tell("todo", {"refused": str(error)})
                raise
            team.leave()
            team.tell("todo", {"whole": whole.tolist()})
        else:
            told = team.hear("todo")
            if "refused" in told:
                raise StoreError(f"Process 0 has refused: {told['refused']}")
            whole = np.array(told["whole"], bool)
            _check_alike(files, made_of, team)
        if whole.any():
            log.info("%d of %d chunks are there already", whole.sum(), whole.size)
        todo = np.flatnonzero(~whole)
        mine = todo if machine.everywhere else todo[team.index :: team.count]
        watch = _Loop(prepared, files, machine, team).run([int(c) for c in mine])
        if team.leads:
            left = todo.tolist()
            team.wait(lambda: _all_there(files, left))
            files.finish()
        else:
            team.wait(lambda: files.finished)
    finally:
        if held is not None:
            held.release()
    return watch


def _open(files: Files, made_of: dict[str, Any]) -> tuple[Any, np.ndarray]:
    """The lock of the store, and which chunks are there."""
    manifest = _manifest.read_manifest(files.path)
    files.path.mkdir(parents=True, exist_ok=True)
    held = _manifest.lock(files.path)
    try:
        manifest = _manifest.read_manifest(files.path)  # somebody may have made it in between
        remove_temporary(files.path)
        if manifest is None:
            _manifest.write_manifest(files, made_of)  # first: what follows may be cut off
        else:
            _manifest.refuse_another(files.path, manifest, files, made_of)
        files.make_group()
        return held, files.verified()
    except BaseException:
        held.release()
        raise


def _check_alike(files: Files, made_of: dict[str, Any], team: Team) -> None:
    """That the job of this process is that of process 0, whose store it is."""
    manifest = _manifest.read_manifest(files.path)
    if manifest is None:
        raise StoreError(f"{files.path} is not seen by process {team.index}.")
    _manifest.refuse_another(files.path, manifest, files, made_of)


def _all_there(files: Files, left: list[int]) -> bool:
    """Whether nothing is left; what is there is taken off the list, so that it is read once."""
    while left and files.record(left[-1]) is not None:
        left.pop()
    return not left


class _Loop:
    """The chunks of one process, through its devices to the disk."""

    def __init__(self, prepared: Prepared, files: Files, machine: Machine, team: Team):
        self._prepared, self._files, self._machine, self._team = prepared, files, machine, team
        self._open: dict[int, _Chunk] = {}
        self._writes: collections.deque[Future[None]] = collections.deque()

    def run(self, todo: Sequence[int]) -> Watch:
        prepared, machine = self._prepared, self._machine
        count, chunk = prepared.samples.count, prepared.chunk
        calls = rounds(todo, prepared, machine.places)
        writers = [c for c in todo if self._is_mine(c)]
        total = sum(min(count, (c + 1) * chunk) - c * chunk for c in writers)
        needed = [starts[place] for starts in calls for place in machine.mine]
        ahead = max(prepared.job.threads, 4 * len(machine.mine))
        read = prepared.samples.batches(needed, prepared.job.threads, ahead)
        looked = time.monotonic()
        flying: collections.deque[tuple[list[int], dict[int, Batch], Any]] = collections.deque()
        with Watch(total, self._team.leads) as watch, ThreadPoolExecutor(_WRITERS) as pool:
            try:
                for starts in calls:
                    batches = {place: next(read) for place in machine.mine}
                    results = machine.call(machine.params, *machine.put(batches))
                    if time.monotonic() - looked > _LOOK_EVERY:
                        looked = time.monotonic()
                        self._team.check()
                    flying.append((starts, batches, results))
                    if len(flying) > _IN_FLIGHT:
                        watch.add(self._land(flying.popleft(), pool))
                while flying:
                    watch.add(self._land(flying.popleft(), pool))
                while self._writes:
                    self._writes.popleft().result()
            finally:
                for write in self._writes:
                    write.cancel()
        return watch

    def _is_mine(self, chunk: int) -> bool:
        """Whether this process writes a chunk."""
        return not self._machine.everywhere or chunk % self._team.count == self._team.index

    def _land(self, call: tuple[list[int], dict[int, Batch], Any], pool: ThreadPoolExecutor) -> int:
        """Results of a call into their chunks; a chunk that is full goes to the disk."""
        starts, batches, results = call
        kept, sums = jax.tree.map(_fetched, results)
        size, landed = self._prepared.job.batch_size, 0
        for place, start in enumerate(starts):
            rows = min(size, self._prepared.samples.count - start)
            number = start // self._prepared.chunk
            if rows <= 0 or not self._is_mine(number):
                continue
            if number not in self._open:
                self._open[number] = _Chunk(self._files, number)
            part = slice(place * size, place * size + rows)
            reasons = batches[place].reasons if place in batches else {}
            cut = lambda a, part=part: a[part]
            rows_kept, rows_sums = jax.tree.map(cut, (kept, sums))
            self._open[number].take(start, rows_kept, rows_sums, reasons)
            landed += rows
            if self._open[number].full:
                finished = self._open.pop(number)
                self._writes.append(pool.submit(finished.write, self._prepared.samples))
        while len(self._writes) > _WRITES or (self._writes and self._writes[0].done()):
            self._writes.popleft().result()
        return landed


def _fetched(a: jax.Array) -> np.ndarray:
    """As numpy; of what is the same on all processes, the copy on this one."""
    return np.asarray(a if a.is_fully_addressable else a.addressable_data(0))


class _Chunk:
    """The rows of a chunk as they come."""

    def __init__(self, files: Files, number: int):
        self._files, self._number = files, number
        rows = files.rows(number)
        self._first, self._left = rows.start, rows.stop - rows.start
        self._values = {
            name: np.empty((self._left, *array.shape), _dtype(array.dtype))
            for name, array in files.arrays.items()
        }
        self._status = np.zeros(self._left, np.int8)
        self._sums = {name: np.zeros(self._left) for name in ("explained", "received")}
        self._reasons: dict[int, str] = {}

    @property
    def full(self) -> bool:
        return self._left == 0

    def take(self, start: int, kept: Any, sums: Any, reasons: dict[int, str]) -> None:
        """Rows of a batch, whose first sample is ``start``."""
        rows = slice(start - self._first, start - self._first + len(sums["status"]))
        for name, value in kept.items():
            self._values[name][rows] = value
        self._status[rows] = sums["status"]
        for name, own in self._sums.items():
            own[rows] = sums[name]
        self._reasons.update(reasons)
        self._left -= len(sums["status"])

    def write(self, samples: Any) -> None:
        """To the disk; a reason that another process has is found out again."""
        bad = []
        for row in np.flatnonzero(self._status != GOOD):
            index, status = self._first + int(row), int(self._status[row])
            reason = self._reasons.get(index)
            if reason is None and status != NOT_FINITE_RELEVANCE:
                reason = samples.read(index)[3]
            bad.append([index, reason or REASONS[status]])
        good = self._status == GOOD
        sums = {name: float(own[good].sum()) for name, own in self._sums.items()}
        self._files.write(self._number, self._values, {"bad": bad, **sums})


def _dtype(name: str) -> Any:
    return jax.numpy.dtype(name)


def _summary(files: Files, watch: Watch) -> Summary:
    records = [record for _, record in files.records()]
    return Summary(
        str(files.path),
        files.samples,
        watch.done,
        watch.seconds,
        sum(record.explained for record in records),
        sum(record.received for record in records),
        tuple(pair for record in records for pair in record.bad),
    )
