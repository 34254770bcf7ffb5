"""A job for tests of `relax.bulk`, as a program: run by itself, in several processes, or killed.

python tests/bulk_job.py STORE [--processes N --process I --port P] [--slow SECONDS]
"""

import argparse
import dataclasses
import os
import sys
import time
from pathlib import Path

SAMPLES, BATCH, CHUNK = 60, 3, 6
UNREADABLE, NOT_FINITE = 17, 41


class Data:
    """Rows of numbers, one of them not finite and one that cannot be read; slow, if asked to be."""

    def __init__(self, seconds=0.0, unreadable=(UNREADABLE,)):
        import numpy as np

        self.rows = np.random.default_rng(1).normal(size=(SAMPLES, 6)).astype(np.float32)
        self.rows[NOT_FINITE, 2] = np.nan
        self.seconds, self.unreadable = seconds, unreadable

    def __len__(self):
        return SAMPLES

    def __getitem__(self, index):
        time.sleep(self.seconds)
        if index in self.unreadable:
            raise OSError("the disk has a scratch")
        return self.rows[index]


def parameters():
    import jax.numpy as jnp
    import numpy as np

    rng = np.random.default_rng(0)
    return {
        "hidden": {"kernel": jnp.asarray(rng.normal(size=(6, 8)), jnp.float32)},
        "head": {"kernel": jnp.asarray(rng.normal(size=(8, 4)), jnp.float32)},
    }


def network(params, x):
    import jax

    return jax.nn.relu(x @ params["hidden"]["kernel"]) @ params["head"]["kernel"]


def job(store, seconds=0.0, **changes):
    """The job of the tests; ``changes`` are of its arguments."""
    from relax import bulk, rules

    settings = {
        "f": network,
        "params": parameters(),
        "data": Data(seconds),
        "store": store,
        "rules": rules.Gamma(0.25),
        "target": "max",
        "batch_size": BATCH,
        "samples_per_chunk": CHUNK,
        "keep": {"relevance": bulk.Relevance(), "top": bulk.TopK(2)},
        "threads": 2,
    }
    return bulk.Job(**(settings | changes))


def content(store):
    """Every file but the lock, and what processes have told each other, byte by byte."""
    store = Path(store)
    kept = lambda p: p.is_file() and not p.name.startswith("lock") and p.parent.name != "runs"
    return {str(p.relative_to(store)): p.read_bytes() for p in store.rglob("*") if kept(p)}


def over_mesh(store, seconds, processes="data"):
    """The same with the hidden layer split over devices, and batches over the others, if any.

    ``processes``: what is split over them, "data" or the "model".
    """
    import jax
    from jax.sharding import AxisType, NamedSharding
    from jax.sharding import PartitionSpec as P

    batches = jax.process_count() if processes == "data" else 1
    shape = (batches, jax.device_count() // batches)
    mesh = jax.make_mesh(shape, ("data", "model"), (AxisType.Auto,) * 2)
    specs = {"hidden": {"kernel": P(None, "model")}, "head": {"kernel": P("model", None)}}
    put = lambda leaf, spec: jax.make_array_from_callback(
        leaf.shape, NamedSharding(mesh, spec), lambda index: leaf[index]
    )
    params = jax.tree.map(put, parameters(), specs)
    return job(store, seconds, params=params, mesh=mesh)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("store", type=Path)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--process", type=int, default=0)
    parser.add_argument("--port", type=int)
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--slow", type=float, default=0.0)
    parser.add_argument("--mesh", choices=["data", "model"], help="what processes share")
    parser.add_argument("--unreadable", type=int, nargs="*", default=[], help="more of them")
    parser.add_argument("--scale", type=float, default=1.0, help="of the parameters")
    parser.add_argument("--largest-file", type=int, help="bytes; as if the disk were full")
    given = parser.parse_args()
    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={given.devices}"
    import jax

    if given.processes > 1:
        jax.distributed.initialize(
            f"localhost:{given.port}",
            given.processes,
            given.process,
            initialization_timeout=60,
            heartbeat_timeout_seconds=10,
        )
    from relax import bulk

    made = job(given.store, given.slow)
    if given.mesh:
        made = over_mesh(given.store, given.slow, given.mesh)
    if given.unreadable:
        data = Data(given.slow, (UNREADABLE, *given.unreadable))
        made = dataclasses.replace(made, data=data)
    if given.scale != 1:
        scaled = jax.tree.map(lambda a: a * given.scale, made.params)
        made = dataclasses.replace(made, params=scaled)
    if given.largest_file:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (given.largest_file, resource.RLIM_INFINITY))
    print(bulk.run(made), flush=True)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    main()
