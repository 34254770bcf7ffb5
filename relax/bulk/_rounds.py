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
    """The mesh of the job: parameters as they are sharded, batches over the data axes."""
    size = prepared.job.batch_size
    places = int(np.prod([mesh.shape[axis] for axis in prepared.axes]))
    split = NamedSharding(mesh, P(prepared.axes))
    held_by: dict[int, set[int]] = {place: set() for place in range(places)}
    for device, index in split.devices_indices_map((places,)).items():
        for place in range(places)[_first(index)]:
            held_by[place].add(device.process_index)
    holders = tuple(tuple(sorted(held)) for held in held_by.values())

    def put(batches: dict[int, Batch]) -> tuple[Any, Any, Any]:
        parts = {place: _as_jax(tuple(batch[:3])) for place, batch in batches.items()}
        leaves = {place: jax.tree.leaves(part) for place, part in parts.items()}
        one = next(iter(parts))
        treedef = jax.tree.structure(parts[one])
        joined = []
        for number, leaf in enumerate(leaves[one]):

            def rows(index: Any, number: int = number) -> np.ndarray:
                first, last, _ = _first(index).indices(places * size)
                return np.concatenate(
                    [leaves[p][number] for p in range(first // size, last // size)]
                )

            shape = (places * size, *leaf.shape[1:])
            joined.append(jax.make_array_from_callback(shape, split, rows))
        return jax.tree.unflatten(treedef, joined)

    for leaf in jax.tree.leaves(prepared.job.params):
        sharding = getattr(leaf, "sharding", None)
        if not isinstance(sharding, NamedSharding) or sharding.mesh.shape != mesh.shape:
            raise ArgumentError(
                f"Job(mesh=...): a parameter of shape {np.shape(leaf)} is not on the mesh.\n"
                "  Put all of them there: jax.device_put(params, shardings), or "
                "relax.bulk.restore(path, like, shardings)."
            )
    call = jax.jit(prepared.step, out_shardings=split)
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
