"""A run: from a job to its finished store, over whatever happened to runs before."""

from __future__ import annotations

import collections
import contextlib
import os
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np

from relax._errors import StoreError
from relax.bulk import _manifest
from relax.bulk._files import Files, tidy
from relax.bulk._job import Job, Prepared
from relax.bulk._rounds import Machine, fetching, local, over_mesh, rounds
from relax.bulk._samples import GOOD, REASONS, UNREADABLE, Batch
from relax.bulk._team import Team
from relax.bulk._watch import Summary, Watch, log

_IN_FLIGHT = 2  # calls that wait for their device while the next ones are prepared
_WRITES = 8  # chunks that wait for the disk
_WRITERS = min(8, max(2, os.cpu_count() or 2))
_LOOK_EVERY = 10.0  # seconds, whether another process has failed


def run(job: Job, retry: bool = False) -> Summary:
    """Explains a whole data set, and writes what is kept to the job's store.

    What a run before has finished is not computed again: end it whenever you like, in any way, and
    run the job again. The results are, to the bit, those of a run that nothing has disturbed, on
    any number of devices and processes (with ``mesh``: on the same mesh). Chunks on disk are read
    and compared with their checksums first; one that is damaged is computed again.

    Args:
      job: what is explained, and how; on each process the same.
      retry: whether chunks with a sample that could not be read are computed again, as after an
        outage of what the samples are read from. Otherwise such a sample stays as it is.

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
    files = Files(prepared.path, prepared.samples.count, prepared.chunk, prepared.arrays, True)
    try:
        team = Team(prepared.path)
        with team.told_of_errors():
            watch = _run(prepared, files, team, retry)
    except OSError as error:
        raise StoreError(
            f"{files.path} cannot be written: {error}.\n"
            "  What is finished is safe. Make room, and run the job again."
        ) from error
    return _summary(files, watch)


def _run(prepared: Prepared, files: Files, team: Team, retry: bool) -> Watch:
    """All of a run, under the lock of the store."""
    mesh = prepared.job.mesh
    machine = local(prepared) if mesh is None else over_mesh(prepared, mesh)
    made_of = prepared.made_of()
    with contextlib.ExitStack() as held:
        if team.leads:
            try:
                _open(files, made_of, held, team)
            except Exception as error:
                team.tell("store", {"refused": str(error)})
                raise
            team.tell("store", {})
        else:
            told = team.hear("store")
            if "refused" in told:
                raise StoreError(f"Process 0 has refused: {told['refused']}")
            _check_alike(files, made_of, team)
            held.callback(_manifest.lock(files.path, team.index).release)
            team.check()  # while this process had no lock another run may have begun
        todo = _left(files, team, retry)
        mine = todo if mesh is not None else todo[team.index :: team.count]
        watch = _Loop(prepared, files, machine, team).run(mine)
        if team.leads:
            team.wait(lambda: _all_there(files, todo))
            files.finish()
            team.tell("done", {})
        else:
            team.hear("done")
    return watch


def _open(files: Files, made_of: dict[str, Any], held: contextlib.ExitStack, team: Team) -> None:
    """The store of this job, locked until the end, with nothing in it that is not of it."""
    _manifest.read_manifest(files.path)  # nothing is made in a folder of something else
    files.path.mkdir(parents=True, exist_ok=True)
    held.callback(_manifest.lock(files.path).release)
    team.leave()  # first: who has no lock yet finds that its run is over
    _manifest.wait_for_stragglers(files.path)
    manifest = _manifest.read_manifest(files.path)  # somebody may have made it in between
    tidy(files.path)
    if manifest is None:
        _manifest.write_manifest(files, made_of)  # first: what follows may be cut off
    else:
        _manifest.refuse_another(files.path, manifest, files, made_of)
    files.make_group()
    files.make_arrays()


def _left(files: Files, team: Team, retry: bool) -> list[int]:
    """The chunks that have to be computed; each process looks at its share of those there are."""
    share = range(team.index, files.chunks, team.count)
    found = team.gather("damaged", files.damaged(share, REASONS[UNREADABLE] if retry else None))
    if team.leads:
        todo = sorted(c for of_process in found for c in of_process)
        if len(todo) < files.chunks:
            log.info("%d of %d chunks are there already", files.chunks - len(todo), files.chunks)
        if 0 < len(todo) < team.count:
            log.warning("%d chunks for %d processes: some are idle", len(todo), team.count)
        team.tell("todo", todo)
        return todo
    return team.hear("todo")


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
        size = prepared.job.batch_size
        calls = rounds(todo, prepared, machine.holders)
        here = machine.mine
        total = sum(self._rows(call[place]) for call in calls for place in self._own(call))
        needed = [call[place] for call in calls for place in here]
        ahead = max(prepared.job.threads, 4 * len(here))
        read = prepared.samples.batches(needed, prepared.job.threads, ahead)
        looked = time.monotonic()
        flying: collections.deque[list[_Landing]] = collections.deque()
        with Watch(total, self._team.leads) as watch, ThreadPoolExecutor(_WRITERS) as pool:
            try:
                for starts in calls:
                    batches = {place: next(read) for place in here}
                    results = machine.call(machine.params, *machine.put(batches))
                    if time.monotonic() - looked > _LOOK_EVERY:
                        looked = time.monotonic()
                        self._team.check()
                    fetched = fetching(results, self._own(starts), size)
                    flying.append(
                        [_Landing(starts[at], batches[at], rows) for at, rows in fetched.items()]
                    )
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

    def _own(self, starts: Sequence[int]) -> list[int]:
        """The places of a call whose results this process writes."""
        machine, chunk, here = self._machine, self._prepared.chunk, self._team.index
        return [
            place
            for place in machine.mine
            if self._rows(starts[place]) and machine.writes(place, starts[place] // chunk, here)
        ]

    def _rows(self, start: int) -> int:
        """Samples of a batch."""
        return max(0, min(self._prepared.job.batch_size, self._prepared.samples.count - start))

    def _land(self, call: Sequence[_Landing], pool: ThreadPoolExecutor) -> int:
        """Results of a call into their chunks; a chunk that is full goes to the disk."""
        landed = 0
        for start, batch, results in call:
            rows = self._rows(start)
            number = start // self._prepared.chunk
            if number not in self._open:
                self._open[number] = _Chunk(self._files, number)
            kept, sums = jax.tree.map(lambda a, rows=rows: np.asarray(a)[:rows], results)
            self._open[number].take(start, kept, sums, batch.reasons)
            landed += rows
            if self._open[number].full:
                self._writes.append(pool.submit(self._open.pop(number).write))
        while len(self._writes) > _WRITES or (self._writes and self._writes[0].done()):
            self._writes.popleft().result()
        return landed


class _Landing(NamedTuple):
    """A batch of which the results are on their way: its first sample, itself, and them."""

    start: int
    batch: Batch
    results: Any


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

    def write(self) -> None:
        """To the disk."""
        bad = []
        for row in np.flatnonzero(self._status != GOOD):
            index = self._first + int(row)
            bad.append([index, self._reasons.get(index) or REASONS[int(self._status[row])]])
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
