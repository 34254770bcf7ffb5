"""What each process runs, in which order: chunks as batches, batches as rounds of all devices."""

from __future__ import annotations

import collections
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from relax._errors import ArgumentError
from relax.bulk._job import Prepared
from relax.bulk._samples import Batch


class Machine(NamedTuple):
    """The devices that one call runs on.

    Attributes:
      holders: for each batch that a call takes, its place, the processes on whose devices it lies;
        several if parameters are split over processes. Each of them reads the batch.
      params: on the devices.
      put: ``batches by place -> arguments``; batches of other processes are not needed.
      call: the compiled program; each place's results stay on its devices.
    """

    holders: tuple[tuple[int, ...], ...]
    params: Any
    put: Callable[[dict[int, Batch]], tuple[Any, Any, Any]]
    call: Callable[..., Any]

    @property
    def mine(self) -> list[int]:
        """The places that lie on devices of this process."""
        here = jax.process_index()
        return [place for place, held in enumerate(self.holders) if here in held]

    def writes(self, place: int, chunk: int, process: int) -> bool:
        """Whether a process writes a chunk of a place: its holders take turns."""
        held = self.holders[place]
        return held[chunk % len(held)] == process


def local(prepared: Prepared) -> Machine:
    """The devices of this process, each with all parameters and a batch of its own.

    Within shard_map every device runs the program of one batch, whatever their number: a sample
    gets the same bits on any of them.
    """
    devices = jax.local_devices()
    mesh = jax.make_mesh((len(devices),), ("batch",), (AxisType.Auto,), devices=devices)
    split, whole = NamedSharding(mesh, P("batch")), NamedSharding(mesh, P())
    step = jax.shard_map(
        prepared.step,
        mesh=mesh,
        in_specs=(P(), P("batch"), P("batch"), P("batch")),
        out_specs=P("batch"),
        check_vma=False,
    )

    def put(batches: dict[int, Batch]) -> tuple[Any, Any, Any]:
        parts = [batches[place][:3] for place in range(len(devices))]
        joined = jax.tree.map(lambda *a: np.concatenate(a), *parts)
        return jax.device_put(_as_jax(joined), split)

    return Machine(
        ((jax.process_index(),),) * len(devices),
        jax.device_put(prepared.job.params, whole),
        put,
        jax.jit(step),
    )


def over_mesh(prepared: Prepared, mesh: jax.sharding.Mesh) -> Machine:
    """The mesh of the job: parameters as they are sharded, batches over the data axes.

    A batch that lies on devices of several processes is read by each of them. A sample that one of
    them cannot read is bad for all: every device says what its process found, and the worst counts.
    """
    size = prepared.job.batch_size
    at_work = {device.process_index for device in mesh.devices.flat}
    if at_work != set(range(jax.process_count())):
        raise ArgumentError(
            f"Job(mesh=...): it has devices of process {', '.join(map(str, sorted(at_work)))}, of "
            f"{jax.process_count()}.\n"
            "  Make the mesh of jax.devices(), which are those of all processes."
        )
    places = int(np.prod([mesh.shape[axis] for axis in prepared.axes]))
    others = tuple(axis for axis in mesh.axis_names if axis not in prepared.axes)
    copies = int(np.prod([mesh.shape[axis] for axis in others]))
    split = NamedSharding(mesh, P(prepared.axes))
    of_each_copy = NamedSharding(mesh, P(others or None, prepared.axes))
    held_by: dict[int, set[int]] = {place: set() for place in range(places)}
    for device, index in split.devices_indices_map((places,)).items():
        for place in range(places)[_first(index)]:
            held_by[place].add(device.process_index)
    holders = tuple(tuple(sorted(held)) for held in held_by.values())

    def put(batches: dict[int, Batch]) -> tuple[Any, Any, Any]:
        def rows(index: slice, parts: Sequence[np.ndarray]) -> np.ndarray:
            first, last, _ = index.indices(places * size)
            at = dict(zip(batches, parts, strict=True))
            return np.concatenate([at[place] for place in range(first // size, last // size)])

        def joined(*parts: np.ndarray) -> jax.Array:
            shape = (places * size, *parts[0].shape[1:])
            return jax.make_array_from_callback(
                shape, split, lambda index: rows(_first(index), parts)
            )

        def of_this_process(index: Any) -> np.ndarray:
            found = rows(index[1], [batch.status for batch in batches.values()])
            return np.broadcast_to(found, (len(range(copies)[index[0]]), found.size))

        x, target = jax.tree.map(joined, *(_as_jax(tuple(b[:2])) for b in batches.values()))
        status = jax.make_array_from_callback(
            (copies, places * size), of_each_copy, of_this_process
        )
        return x, target, status

    def step(params: Any, x: Any, target: Any, status: jax.Array) -> Any:
        return prepared.step(params, x, target, status.max(0))

    for leaf in jax.tree.leaves(prepared.job.params):
        sharding = getattr(leaf, "sharding", None)
        if not isinstance(sharding, NamedSharding) or sharding.mesh.shape != mesh.shape:
            raise ArgumentError(
                f"Job(mesh=...): a parameter of shape {np.shape(leaf)} is not on the mesh.\n"
                "  Put all of them there: jax.device_put(params, shardings), or "
                "relax.bulk.restore(path, like, shardings)."
            )
    call = jax.jit(step, out_shardings=split)
    return Machine(holders, prepared.job.params, put, call)


def _first(index: Any) -> slice:
    """Of the samples, in the place of a shard."""
    return index[0]


def _as_jax(tree: Any) -> Any:
    """In the dtypes JAX has: of 32 bits, unless jax_enable_x64 is set."""
    return jax.tree.map(lambda a: a.astype(jax.dtypes.canonicalize_dtype(a.dtype)), tree)


def rounds(
    todo: Sequence[int], prepared: Prepared, holders: Sequence[tuple[int, ...]]
) -> list[list[int]]:
    """Where the batches of each call start; behind all data where nothing is left to do.

    Chunks are dealt to groups of places with the same holders: all of a chunk comes to its writer.
    """
    count, chunk, size = prepared.samples.count, prepared.chunk, prepared.job.batch_size
    groups = sorted(set(holders))
    starts = {
        group: collections.deque(
            start
            for number in todo[turn :: len(groups)]
            for start in range(number * chunk, min((number + 1) * chunk, count), size)
        )
        for turn, group in enumerate(groups)
    }
    calls = []
    while any(starts.values()):
        calls.append([starts[group].popleft() if starts[group] else count for group in holders])
    return calls


def fetching(results: Any, places: Sequence[int], size: int) -> dict[int, Any]:
    """The results of places, each on its device, on their way to the host.

    Args:
      results: arrays with the samples of all places in front.
      places: those that are wanted, of this process.
      size: samples of a place.
    """
    leaves, treedef = jax.tree.flatten(results)
    parts = [
        {(_first(shard.index).start or 0) // size: shard.data for shard in leaf.addressable_shards}
        for leaf in leaves
    ]
    for of_leaf in parts:
        for place in places:
            of_leaf[place].copy_to_host_async()
    return {place: jax.tree.unflatten(treedef, [part[place] for part in parts]) for place in places}
