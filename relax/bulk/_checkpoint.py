"""Parameters from a checkpoint, each part of them straight to the device that holds it."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np

from relax._errors import ArgumentError
from relax._paths import path_name

_FILE, _INDEX = ".safetensors", ".safetensors.index.json"


def restore(path: str | os.PathLike[str], like: Any = None, shardings: Any = None) -> Any:
    """Parameters of a checkpoint of Orbax, or of ``.safetensors``, in one file or in many.

    Nothing in either is code: neither is unpickled. Each process reads the parts of its own
    devices.

    Args:
      path: the folder of Orbax; a ``.safetensors`` file; a folder of them, as large models come in,
        or the ``.safetensors.index.json`` in it.
      like: a pytree of arrays or jax.ShapeDtypeStruct: the structure, shapes and dtypes that are
        expected; by default what is there. Of a safetensors file the names are the paths of leaves,
        with ``.`` or ``/`` between their parts.
      shardings: a jax.sharding.Sharding for all, or a pytree of them in the structure of ``like``;
        by default all on the first device of the process.

    Returns:
      The parameters; without ``like``, dicts of arrays.

    Raises:
      ArgumentError: there is no checkpoint; it is damaged, or not all of its files are there;
        names, shapes or dtypes are others; ``shardings`` is a pytree, and ``like`` is not given.
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
    path = Path(path).expanduser().absolute()  # a link may have the name that tells what it is
    if not path.exists():
        raise ArgumentError(f"restore: {path} is not there.")
    whole = shardings is None or isinstance(shardings, jax.sharding.Sharding)
    if not whole and like is None:
        raise ArgumentError(
            "restore: shardings for each leaf need like=, whose structure they have."
        )
    if path.name.endswith((_FILE, _INDEX)) or (path.is_dir() and any(path.glob("*" + _FILE))):
        return _safetensors(path, like, shardings, whole)
    if path.is_dir():
        return _orbax(path, like, shardings, whole)
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


def _parts(path: Path) -> tuple[list[Path], dict[str, str]]:
    """The ``.safetensors`` files of a checkpoint, and, if it has an index, which has what.

    Raises:
      ArgumentError: there are several and no index of them; the index is damaged.
    """
    if path.name.endswith(_FILE):
        return [path], {}
    if path.is_dir():
        found = sorted(path.glob("*" + _INDEX))
        if len(found) != 1:
            files = sorted(path.glob("*" + _FILE))
            if len(files) == 1:
                return files, {}
            raise ArgumentError(
                f"restore: {path} has {len(files)} files of safetensors and {len(found)} indices; "
                "name the one that is meant."
            )
        path = found[0]
    try:
        parts = {str(name): str(file) for name, file in _weight_map(path).items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArgumentError(f"restore: {path} is damaged: {_words(error)}") from error
    for file in parts.values():
        if Path(file).name != file:
            raise ArgumentError(f"restore: {path} names {file}, which is not beside it.")
    return [path.parent / file for file in sorted(set(parts.values()))], parts


def _weight_map(index: Path) -> dict[str, str]:
    return json.loads(index.read_text())["weight_map"]


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _tensors(path: Path, opened: contextlib.ExitStack) -> dict[str, Any]:
    """For each name the file, opened, that has the array."""
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise ImportError(
            'A .safetensors file needs safetensors: pip install "relax-lrp[bulk]".'
        ) from error
    found: dict[str, Any] = {}
    parts, listed = _parts(path)
    for part in parts:
        try:
            file = opened.enter_context(safe_open(part, framework="numpy"))
        except (SafetensorError, OSError) as error:
            raise ArgumentError(f"restore: {part} cannot be read: {_words(error)}") from error
        for name in file.keys():  # noqa: SIM118
            if listed.get(name, part.name) == part.name:
                found[name] = file
    if lost := sorted(listed.keys() - found.keys()):
        raise ArgumentError(
            f"restore: {path} lists {lost[0]}, which is not in the file that it names."
        )
    return found


def _safetensors(path: Path, like: Any, shardings: Any, whole: bool) -> Any:
    with contextlib.ExitStack() as opened:
        tensors = _tensors(path, opened)
        names = {name.replace(".", "/"): name for name in tensors}
        one = (shardings or _first_device()) if whole else None

        def loaded(name: str, sharding: Any, expected: Any = None) -> jax.Array:
            file = tensors[name]
            part = file.get_slice(name)
            shape, dtype = tuple(part.get_shape()), _DTYPES.get(part.get_dtype())
            if dtype is None:
                raise ArgumentError(f"restore: {name} has dtype {part.get_dtype()}.")
            if expected is not None and (expected.shape, expected.dtype) != (shape, dtype):
                raise ArgumentError(
                    f"restore: {name} is {dtype}{list(shape)}; expected "
                    f"{expected.dtype}{list(expected.shape)}."
                )
            rows = lambda index: np.asarray(
                part[index] if shape else tensors[name].get_tensor(name)
            )
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
