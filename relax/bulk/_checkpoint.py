"""Parameters from a checkpoint, each part of them straight to the device that holds it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import jax
import numpy as np

from relax._errors import ArgumentError
from relax._paths import path_name


def restore(path: str | os.PathLike[str], like: Any = None, shardings: Any = None) -> Any:
    """Parameters of an Orbax checkpoint (a folder) or of a ``.safetensors`` file.

    Nothing in either is code: neither is unpickled. Each process reads the parts of its own
    devices.

    Args:
      path: the folder or file.
      like: a pytree of arrays or jax.ShapeDtypeStruct: the structure, shapes and dtypes that are
        expected; by default what is there. Of a safetensors file the names are the paths of leaves,
        with ``.`` or ``/`` between their parts.
      shardings: a jax.sharding.Sharding for all, or a pytree of them in the structure of ``like``;
        by default all on the first device of the process.

    Returns:
      The parameters; without ``like``, dicts of arrays.

    Raises:
      ArgumentError: there is no checkpoint; names, shapes or dtypes are others; ``shardings`` is a
        pytree, and ``like`` is not given.
      ImportError: orbax-checkpoint or safetensors is not installed.

    Example:
      >>> import numpy as np, pathlib, tempfile
      >>> from relax import bulk
      >>> from safetensors.numpy import save_file
      >>> path = pathlib.Path(tempfile.mkdtemp()) / "model.safetensors"
      >>> save_file({"head.kernel": np.ones((2, 3), np.float32)}, path)
      >>> print(bulk.restore(path)["head"]["kernel"].shape)
      (2, 3)
    """
    path = Path(path).expanduser().resolve()
    if not path.exists():
        raise ArgumentError(f"restore: {path} is not there.")
    whole = shardings is None or isinstance(shardings, jax.sharding.Sharding)
    if not whole and like is None:
        raise ArgumentError(
            "restore: shardings for each leaf need like=, whose structure they have."
        )
    if path.is_dir():
        return _orbax(path, like, shardings, whole)
    if path.suffix == ".safetensors":
        return _safetensors(path, like, shardings, whole)
    raise ArgumentError(f"restore: {path} is no folder of Orbax and no .safetensors file.")


def _shape(leaf: Any, sharding: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _first_device() -> jax.sharding.Sharding:
    return jax.sharding.SingleDeviceSharding(jax.local_devices()[0])


def _orbax(path: Path, like: Any, shardings: Any, whole: bool) -> Any:
    import orbax.checkpoint as ocp

    with ocp.StandardCheckpointer() as checkpointer:
        if like is None:
            found = checkpointer.metadata(path)
            like = getattr(found, "item_metadata", found)
            like = getattr(like, "tree", like)
        if whole:
            one = shardings or _first_device()
            wanted = jax.tree.map(lambda leaf: _shape(leaf, one), like)
        else:
            wanted = jax.tree.map(_shape, like, shardings)
        try:
            return checkpointer.restore(path, wanted)
        except (ValueError, KeyError, TypeError, FileNotFoundError) as error:
            raise ArgumentError(f"restore: {path} is not what was expected: {error}") from error


def _safetensors(path: Path, like: Any, shardings: Any, whole: bool) -> Any:
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise ImportError(
            'A .safetensors file needs safetensors: pip install "relax-lrp[bulk]".'
        ) from error
    try:
        file = safe_open(path, framework="numpy")
    except SafetensorError as error:
        raise ArgumentError(f"restore: {path} is damaged: {error}") from error
    with file:
        names = {name.replace(".", "/"): name for name in file.keys()}  # noqa: SIM118
        one = (shardings or _first_device()) if whole else None

        def loaded(name: str, sharding: Any, expected: Any = None) -> jax.Array:
            part = file.get_slice(name)
            shape, dtype = tuple(part.get_shape()), _DTYPES.get(part.get_dtype())
            if dtype is None:
                raise ArgumentError(f"restore: {name} has dtype {part.get_dtype()}.")
            if expected is not None and (expected.shape, expected.dtype) != (shape, dtype):
                raise ArgumentError(
                    f"restore: {name} is {dtype}{list(shape)}; expected "
                    f"{expected.dtype}{list(expected.shape)}."
                )
            rows = lambda index: np.asarray(part[index] if shape else file.get_tensor(name))
            return jax.make_array_from_callback(shape, sharding, rows)

        if like is None:
            tree: dict[str, Any] = {}
            for path_of, name in names.items():
                *folders, leaf = path_of.split("/")
                inner = tree
                for folder in folders:
                    inner = inner.setdefault(folder, {})
                inner[leaf] = loaded(name, one)
            return tree
        leaves, treedef = jax.tree_util.tree_flatten_with_path(like)
        each = [one] * len(leaves) if whole else treedef.flatten_up_to(shardings)
        missing = [path_name(keys) for keys, _ in leaves if path_name(keys) not in names]
        if missing:
            raise ArgumentError(f"restore: {path} has no {missing[0]}; it has {', '.join(names)}.")
        return jax.tree.unflatten(
            treedef,
            [
                loaded(names[path_name(keys)], sharding, leaf)
                for (keys, leaf), sharding in zip(leaves, each, strict=True)
            ],
        )


_DTYPES = {
    **{name: np.dtype(kind) for name, kind in (("F64", "f8"), ("F32", "f4"), ("F16", "f2"))},
    **{
        f"{a}{8 * n}": np.dtype(f"{b}{n}")
        for a, b in (("I", "i"), ("U", "u"))
        for n in (1, 2, 4, 8)
    },
    "BF16": jax.numpy.dtype("bfloat16"),
    "BOOL": np.dtype(bool),
}
