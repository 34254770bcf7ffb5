"""The loop that all workers share: a JSON request a line on stdin, a JSON answer a line on stdout.

Needs the standard library and NumPy only, since it runs in the environment of every peer.

| request | answer |
|---|---|
| ``load``: network, files of weights and input, batch | ``logits`` of the explained class |
| ``prepare``: method | ``seconds`` of the first call, with compilation and whatever else it does |
| ``run``: method | ``seconds`` of one call, until its result is there |
| ``relevance``: method, file | the file holds the relevance of the input |

What goes wrong is answered as ``{"error": ...}``; what libraries print goes to stderr.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

Explain = Callable[[], Any]
TARGET = 0
THREADS = int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1))


class Worker:
    """What a peer fills in: a network from arrays, and the explanations that it knows."""

    def load(self, network: str, weights: dict[str, np.ndarray], x: np.ndarray) -> np.ndarray:
        """Builds the network; the logits of ``x``, of shape ``(batch, classes)``."""
        raise NotImplementedError

    def explanation(self, method: str) -> Any:
        """A context manager that gives a function without arguments: one explanation.

        What users do once for a network, as to register hooks or to build a graph, is done on
        entering; the function returns when its result is there.
        """
        raise NotImplementedError

    def to_input(self, relevance: Any) -> np.ndarray:
        """What the function gave, as NumPy in the layout of the input."""
        return np.asarray(relevance)


def _seconds(explain: Explain) -> float:
    start = time.perf_counter()
    explain()
    return time.perf_counter() - start


@contextlib.contextmanager
def _arrays(path: str) -> Iterator[dict[str, np.ndarray]]:
    with np.load(path) as stored:
        yield {name: stored[name] for name in stored.files}


def _load(worker: Worker, request: dict[str, Any]) -> dict[str, Any]:
    with _arrays(request["weights"]) as weights, _arrays(request["input"]) as stored:
        x = np.ascontiguousarray(stored["x"][: request["batch"]])
        logits = worker.load(request["network"], weights, x)
    return {"logits": np.asarray(logits)[:, TARGET].tolist()}


def _prepare(worker: Worker, request: dict[str, Any]) -> dict[str, Any]:
    start = time.perf_counter()
    with worker.explanation(request["method"]) as explain:
        explain()
        return {"seconds": time.perf_counter() - start}


def _run(worker: Worker, request: dict[str, Any]) -> dict[str, Any]:
    with worker.explanation(request["method"]) as explain:
        return {"seconds": _seconds(explain)}


def _relevance(worker: Worker, request: dict[str, Any]) -> dict[str, Any]:
    with worker.explanation(request["method"]) as explain:
        np.savez(request["file"], relevance=worker.to_input(explain()))
    return {}


REQUESTS = {"load": _load, "prepare": _prepare, "run": _run, "relevance": _relevance}


def serve(make: Callable[[], Worker]) -> None:
    """Answers requests until stdin ends."""
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)  # whatever a library prints is no answer
        worker = make()
        for line in sys.stdin:
            request = json.loads(line)
            try:
                answer = REQUESTS[request["request"]](worker, request)
            except Exception as error:
                traceback.print_exc()
                answer = {"error": f"{type(error).__name__}: {error}"}
            print(json.dumps(answer), file=answers, flush=True)
