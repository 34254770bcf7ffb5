"""A job: what is explained, of which data, how, and what is kept."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import relax
from relax._errors import ArgumentError
from relax._numerics import is_count
from relax.bulk import _fingerprint, _step
from relax.bulk._files import DTYPES, Array
from relax.bulk._keep import Relevance
from relax.bulk._samples import Samples
from relax.rules import Epsilon

_CHUNK_BYTES, _CHUNK_SAMPLES = 2**26, 4096


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Job:
    """The attribution of a whole data set. It is checked when it runs.

    Args:
      f: the function, ``f(params, x)``, of a batch.
      params: its parameters; see `restore` for those of a checkpoint. Where ``mesh`` is given, as
        they are sharded; else they are copied to each device.
      data: anything with ``len()`` and ``[i]``: an array, a list, a ``grain.MapDataset``, a data
        set of your own. A sample is an array or a pytree of arrays, without an axis of samples, all
        of one shape. It is read by several threads.
      store: the folder of the results, on a file system that all processes share.
      rules: as in `relax.lrp`.
      method: instead of rules, a method: one of `relax.methods`, with ``functools.partial`` for its
        options, or anything that is called as ``method(f, target=target)(params, x)``.
      target: as in `relax.lrp`: None, an int or ``"max"``; or an array of an integer for each
        sample, or ``"data"``, and ``data[i]`` is ``(x, target)``.
      keep: what is kept, by the name of the array: `Relevance`, `Summed`, `TopK`, `Value`,
        `Latent`, `Absorbed`, or a function of an `Explained` that returns an array, or a pytree of
        arrays, with the samples in front.
      batch_size: samples of a batch, which stands on one device (with ``mesh`` on one place of its
        data axes). A sample is explained beside the same others on any number of devices.
      samples_per_chunk: samples that are written, and lost, together; a multiple of ``batch_size``.
        By default as many as make about 64 MiB of the largest array, at most 4096.
      dtype: what float inputs are cast to, for example ``"bfloat16"``; by default they stay.
      mesh: a mesh over all devices of all processes, for parameters that are sharded over it. By
        default each process explains samples of its own on its own devices.
      data_axes: axes of the mesh that batches are distributed over.
      version: what else makes the result what it is: of the data, say. It is compared with that of
        a store.
      threads: that read samples.

    Raises:
      ArgumentError: when it runs; it names the argument.

    Example:
      See `run`, which has one from the function to its results.
    """

    f: Callable[..., Any]
    params: Any
    data: Any
    store: str | os.PathLike[str]
    rules: Any = Epsilon()
    method: Callable[..., Any] | None = None
    target: Any = None
    keep: Mapping[str, Any] = dataclasses.field(default_factory=lambda: {"relevance": Relevance()})
    batch_size: int = 32
    samples_per_chunk: int | None = None
    dtype: Any = None
    mesh: jax.sharding.Mesh | None = None
    data_axes: str | Sequence[str] = "data"
    version: str = ""
    threads: int = 8


class Prepared:
    """A job that has been checked, and all that follows from it.

    Attributes:
      samples: its data.
      step: the function of a batch.
      arrays: what is stored.
      chunk: samples of a chunk.
      axes: of the mesh, that batches are distributed over.
    """

    def __init__(self, job: Job):
        _check(job)
        self.job, self.path = job, Path(job.store).expanduser()
        self.axes = (job.data_axes,) if isinstance(job.data_axes, str) else tuple(job.data_axes)
        if job.mesh is not None:
            absent = [axis for axis in self.axes if axis not in job.mesh.axis_names]
            if absent:
                raise ArgumentError(
                    f"Job(data_axes={job.data_axes!r}): the mesh has {job.mesh.axis_names}."
                )
        self.samples = Samples(job.data, job.target, job.batch_size)
        self.dtype = None if job.dtype is None else jnp.dtype(job.dtype)
        self.step = _step.make(job.f, job.rules, job.method, job.target, job.keep, self.dtype)
        self.shapes = (
            jax.tree.map(_shape, job.params),
            self.samples.shapes(),
            jax.ShapeDtypeStruct((job.batch_size,), jnp.int32),
            jax.ShapeDtypeStruct((job.batch_size,), jnp.int8),
        )
        kept, _ = jax.eval_shape(self.step, *self.shapes)
        self.arrays = {n: Array(tuple(a.shape[1:]), str(a.dtype)) for n, a in kept.items()}
        odd = [f"{n} ({a.dtype})" for n, a in self.arrays.items() if a.dtype not in DTYPES]
        if odd:
            raise ArgumentError(f"keep: {', '.join(odd)} cannot be stored; known: {DTYPES}.")
        self.chunk = self._chunk()

    def _chunk(self) -> int:
        given, size = self.job.samples_per_chunk, self.job.batch_size
        if given is not None:
            if not is_count(given) or given % size:
                raise ArgumentError(
                    f"Job(samples_per_chunk={given!r}): expected a multiple of batch_size={size}."
                )
            return given
        widest = max(math.prod(a.shape) * jnp.dtype(a.dtype).itemsize for a in self.arrays.values())
        samples = min(_CHUNK_BYTES // max(widest, 1), _CHUNK_SAMPLES, self.samples.count + size - 1)
        return max(1, samples // size) * size

    def _layout(self, mesh: jax.sharding.Mesh) -> str:
        """Axes, those of samples, the process of each device: on all of them the bits depend."""
        processes = " ".join(str(device.process_index) for device in mesh.devices.flat)
        return f"{dict(mesh.shape)}, samples over {self.axes}, devices of processes {processes}"

    def made_of(self) -> dict[str, Any]:
        """What the results are made of, to be compared with that of a store."""
        job = self.job
        device = jax.local_devices()[0]
        return {
            "relax": relax.__version__,
            "jax": f"{jax.__version__}, jaxlib {version('jaxlib')}",
            "XLA_FLAGS": _without_devices(os.environ.get("XLA_FLAGS", "")),
            "device": f"{device.platform}, {device.device_kind}",
            "batch_size": job.batch_size,
            "mesh": "" if job.mesh is None else self._layout(job.mesh),
            "sharding": {} if job.mesh is None else _fingerprint.shardings(job.params),
            "dtype": str(self.dtype or "as it is"),
            "precision": str(getattr(jax.config, "jax_default_matmul_precision", None)),
            "version": job.version,
            "target": _fingerprint.targets(job.target),
            "method": "" if job.method is None else _fingerprint.explained_by(job.method),
            "rule": {}
            if job.method is not None
            else _fingerprint.rule_of_each_layer(job.f, job.rules, *self.shapes[:2]),
            "program": _fingerprint.program(self.step, *self.shapes),
            "parameter": _fingerprint.parameters(job.params),
            "data": _fingerprint.data(self.samples),
        }


def _without_devices(flags: str) -> str:
    """Flags of XLA without the number of a CPU's devices, of which the bits do not depend."""
    return " ".join(f for f in flags.split() if "host_platform_device_count" not in f)


def _check(job: Job) -> None:
    if "://" in os.fspath(job.store):
        raise ArgumentError(
            f"Job(store={job.store!r}): expected a folder of a file system; mount the bucket."
        )
    if not callable(job.f):
        raise ArgumentError(f"Job(f={job.f!r}): expected a function, f(params, x).")
    for name in ("batch_size", "threads"):
        if not is_count(getattr(job, name)):
            raise ArgumentError(f"Job({name}={getattr(job, name)!r}): expected a positive integer.")
    if not isinstance(job.keep, Mapping) or not job.keep:
        raise ArgumentError(
            f"Job(keep={job.keep!r}): expected a mapping from names of arrays to what is kept, as "
            '{"relevance": relax.bulk.Relevance()}.'
        )
    for name in job.keep:
        if not isinstance(name, str) or not _step.is_name(name):
            raise ArgumentError(f"Job(keep=...): {name!r} is no name of an array.")
    if job.method is not None and not callable(job.method):
        raise ArgumentError(f"Job(method={job.method!r}): expected a function, method(f, target=).")
    _fingerprint.targets(job.target)
    if isinstance(job.target, str) and job.target not in ("max", "data"):
        raise ArgumentError(f'Job(target={job.target!r}): expected "max" or "data".')


def _shape(leaf: Any) -> Any:
    if not hasattr(leaf, "dtype"):
        leaf = np.asarray(leaf)
    return jax.ShapeDtypeStruct(leaf.shape, jax.dtypes.canonicalize_dtype(leaf.dtype))
