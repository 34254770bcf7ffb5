"""Attribution of whole data sets: compiled once, on all devices, and resumed after any fault.

    job = relax.bulk.Job(f=f, params=params, data=data, store="relevance.zarr", target="max")
    print(relax.bulk.run(job))

It needs ``pip install "relax-lrp[bulk]"``: Grain reads, TensorStore writes (Zarr v3).
"""

from relax._errors import StoreError
from relax.bulk._checkpoint import restore
from relax.bulk._job import Job
from relax.bulk._keep import Absorbed, Explained, Keep, Latent, Relevance, Summed, TopK, Value
from relax.bulk._run import run
from relax.bulk._store import Store
from relax.bulk._watch import Summary

__all__ = [
    "Absorbed",
    "Explained",
    "Job",
    "Keep",
    "Latent",
    "Relevance",
    "Store",
    "StoreError",
    "Summary",
    "Summed",
    "TopK",
    "Value",
    "restore",
    "run",
]
