"""What each process runs, in which order: chunks as batches, batches as rounds of all devices."""

from __future__ import annotations

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
      places: how many batches a call takes.
      mine: which of them this process reads, since they lie on its devices.
      everywhere: whether all processes run every call together.
      params: on the devices.
      put: ``batches by place -> arguments``; batches of other processes are not needed.
      call: the compiled program; its results can be read by every process.
    """

    places: int
    mine: tuple[int, ...]
    everywhere: bool
    params: Any
    put: Callable[[dict[int, Batch]], tuple[Any, Any, Any]]
    call: Callable[..., Any]


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
        len(devices),
        tuple(range(len(devices))),
        False,
        jax.device_put(prepared.job.params, whole),
        put,
        jax.jit(step),
    )


def over_mesh(prepared: Prepared, mesh: jax.sharding.Mesh) -> Machine:
    """The mesh of the job: parameters as they are sharded, batches over the data axes."""
    size = prepared.job.batch_size
    places = int(np.prod([mesh.shape[axis] for axis in prepared.axes]))
    split, whole = NamedSharding(mesh, P(prepared.axes)), NamedSharding(mesh, P())
    indices = split.addressable_devices_indices_map((places,))
    mine = sorted({p for index in indices.values() for p in range(places)[_first(index)]})

    def put(batches: dict[int, Batch]) -> tuple[Any, Any, Any]:
        parts = {place: _as_jax(tuple(batch[:3])) for place, batch in batches.items()}
        leaves = {place: jax.tree.leaves(part) for place, part in parts.items()}
        treedef = jax.tree.structure(parts[mine[0]])
        joined = []
        for number, leaf in enumerate(leaves[mine[0]]):

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
    call = jax.jit(prepared.step, out_shardings=whole)
    return Machine(places, tuple(mine), True, prepared.job.params, put, call)


def _first(index: Any) -> slice:
    """Of the samples, in the place of a shard."""
    return index[0]


def _as_jax(tree: Any) -> Any:
    """In the dtypes JAX has: of 32 bits, unless jax_enable_x64 is set."""
    return jax.tree.map(lambda a: a.astype(jax.dtypes.canonicalize_dtype(a.dtype)), tree)


def rounds(todo: Sequence[int], prepared: Prepared, places: int) -> list[list[int]]:
    """Where the batches of each call start; behind all data where nothing is left to do."""
    count, chunk, size = prepared.samples.count, prepared.chunk, prepared.job.batch_size
    starts = [
        start
        for number in todo
        for start in range(number * chunk, min((number + 1) * chunk, count), size)
    ]
    starts += [count] * (-len(starts) % places)
    return [starts[i : i + places] for i in range(0, len(starts), places)]
