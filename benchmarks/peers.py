"""Wall time of relax side by side with what users would take in its place, on a CPU.

Zennit, Captum, LXT, autoLRP and iNNvestigate each run in a process and an environment of their own
(`benchmarks.environments`, made on the first run), on the same weights, inputs and cores. Runs are
interleaved: in each repeat everything runs once, so that ratios are of neighbours in time; medians
are reported. "by relax" is a peer's time by that of relax for the same rules: above one, relax is
faster. "by gradient" is the time by that of gradient times input in the same framework: `jax.grad`,
PyTorch's autograd, TensorFlow. "agreement" is the largest difference of a relevance from relax's by
the largest of relax, "logits" the same of the explained logits; "first call" is in seconds, with
compilation. What could not be installed or run stands in a table of its own.

Where a peer defines a rule otherwise, there is no agreement, though costs compare: Captum's rule
for positive weights lets inputs of both signs through them; autoLRP shares relevance among summands
and with biases by absolute values; iNNvestigate's AlphaBeta has the whole bias in both parts.
Elsewhere some hundredths can be rounding in single precision: a ReLU so near zero that it is on in
one framework only, or a denominator near zero. The gradients of the frameworks show it as well.

Where other programs run, take one thread less than there are cores: PyTorch waits at every step for
all its threads, and a core that is taken from it slows it down tenfold.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import environments
from benchmarks.report import Table
from benchmarks.workers import _problems
from benchmarks.workers._peers import GRADIENT, PEERS, ZENNIT, Peer
from benchmarks.workers._process import Process, WorkerError

BATCHES = {
    "LeNet": (1, 32, 256),
    "VGG16": (1, 4, 8),
    "ResNet50": (1, 8),
    "Llama": (1, 8),
    "BERT": (1, 8),
    "ViT": (1, 8),
}
LABELS = ("network", "rules", "by")
Key = tuple[str, str]  # a method, and who explains by it


class Comparison:
    """The workers of one network, relax's first; ``lost`` takes what fails."""

    def __init__(
        self, network: str, pythons: dict[str, str], lost: Table, folder: Path, threads: int
    ):
        self.network, self.lost, self.folder, self.threads = network, lost, folder, threads
        self.peers = {name: PEERS[name] for name in pythons if network in PEERS[name].methods}
        offered = [GRADIENT, *(m for peer in self.peers.values() for m in peer.methods[network])]
        every = tuple(dict.fromkeys(offered if self.peers else (GRADIENT, *ZENNIT)))
        own = Peer(None, "relax_worker", {network: every}, "relax")
        self.peers = {"relax": own, **self.peers}
        self.pythons = {"relax": sys.executable, **pythons}
        self.processes: dict[Key, Process] = {}
        self.logits: dict[Key, np.ndarray] = {}

    def start(self, stack: contextlib.ExitStack) -> None:
        """Starts the workers, one process for a peer, or for each of its methods."""
        for name, peer in self.peers.items():
            shared: Process | None = None
            for method in peer.methods[self.network]:
                if shared is None or peer.alone:
                    log = self.folder / f"{peer.worker}_{method}.log"
                    process = Process(self.pythons[name], peer.worker, log, self.threads)
                    shared = stack.enter_context(process)
                self.processes[method, name] = shared
        # Neighbours in time explain by the same method.
        order = list(dict.fromkeys(method for method, _ in self.processes))
        by_method = sorted(self.processes.items(), key=lambda item: order.index(item[0][0]))
        self.processes = dict(by_method)

    def attempt(self, keys: list[Key], request: str, **values: object) -> dict[str, Any]:
        """The answer of a process, or nothing: then the keys are lost."""
        peer = keys[0][1]
        try:
            return self.processes[keys[0]].ask(request, **values)
        except WorkerError as error:
            if peer == "relax":
                raise
            what = keys[0][0] if len(keys) == 1 else "all"
            self.lost.add(peer, f"{self.network}, {what}", f"{request}: {error}", None)
            for key in keys:
                del self.processes[key]
            return {}

    def load(self, files: dict[str, str], batch: int) -> None:
        """Gives weights and input to every process."""
        for process in dict.fromkeys(self.processes.values()):
            keys = [key for key, other in self.processes.items() if other is process]
            values = {"network": self.network, "batch": batch, **files}
            answer = self.attempt(keys, "load", **values)
            self.logits |= {key: np.array(answer["logits"]) for key in keys if answer}

    def first_calls(self) -> dict[Key, float]:
        """Seconds of the first call of each."""
        answers = {k: self.attempt([k], "prepare", method=k[0]) for k in list(self.processes)}
        return {key: answer["seconds"] for key, answer in answers.items() if answer}

    def relevances(self) -> dict[Key, np.ndarray]:
        """What each gives."""
        found = {}
        for key in list(self.processes):
            file = str(self.folder / "relevance.npz")
            self.attempt([key], "relevance", method=key[0], file=file)
            if key in self.processes:
                found[key] = np.load(file)["relevance"]
        return found

    def times(self, repeats: int) -> dict[Key, list[float]]:
        """Seconds of each in every repeat; everything runs once before anything runs again."""
        times: dict[Key, list[float]] = {key: [] for key in self.processes}
        for _ in range(repeats):
            for key in list(self.processes):
                answer = self.attempt([key], "run", method=key[0])
                if answer:
                    times[key].append(answer["seconds"])
        return {key: times[key] for key in self.processes}

    def report(self, table: Table, batch: int, repeats: int) -> None:
        """One row for each method of each peer."""
        first, relevances, times = self.first_calls(), self.relevances(), self.times(repeats)
        for (method, name), seconds in times.items():
            base = times.get((GRADIENT, self.peers[name].floor))
            own, relax = (method, name), (method, "relax")
            other = name != "relax"
            same = other and method not in self.peers[name].differs
            table.add(
                f"{self.network}, batch {batch}",
                method,
                name,
                statistics.median(seconds),
                _ratio(seconds, times[relax]) if other else None,
                _ratio(seconds, base) if base and method != GRADIENT else None,
                _difference(relevances[own], relevances[relax]) if same else None,
                _difference(self.logits[own], self.logits[relax]) if other else None,
                first[own],
            )


def _ratio(seconds: list[float], base: list[float]) -> float:
    """The median of paired ratios."""
    return statistics.median(a / b for a, b in zip(seconds, base, strict=True))


def _difference(a: np.ndarray, b: np.ndarray) -> float | None:
    """The largest difference by the largest value, if both are of one shape."""
    return float(np.max(np.abs(a - b)) / np.max(np.abs(b))) if a.shape == b.shape else None


def installed(names: list[str], lost: Table) -> dict[str, str]:
    """The interpreters of peers; those that cannot be installed go into a table."""
    pythons = {}
    for name in names:
        try:
            pythons[name] = str(environments.python(PEERS[name].environment))
        except environments.InstallError as error:
            lost.add(name, "not installable", error.why, error.status)
    return pythons


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--only", choices=PEERS, action="append", help="these peers (default: all)")
    parser.add_argument("--network", choices=BATCHES, action="append")
    parser.add_argument("--batch", type=int, nargs="+", help="sizes (default: by the network)")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="default: all cores")
    parser.add_argument("--repeats", type=int, default=5, help="default: 5")


def run(arguments: argparse.Namespace) -> list[Table]:
    command = "python -m benchmarks peers"
    small, threads = arguments.small, arguments.threads
    table = Table(
        "peers",
        f"Seconds on {threads} of the cores, by those of relax, and by those of the gradient",
        command,
        (*LABELS, "seconds", "by relax", "by gradient", "agreement", "logits", "first call"),
        labels=len(LABELS),
        digits=None,
        plot=("by relax",),
    )
    columns = ("peer", "what", "why", "exit status")
    lost = Table("peers_lost", "What could not be installed or run", command, columns, labels=3)
    only = arguments.only or PEERS
    names = dict.fromkeys((*(PEERS[name].floor for name in only), *only))
    # --small installs nothing: relax and jax.grad alone.
    pythons = {} if small else installed(list(names), lost)
    print(f"load of the machine before: {os.getloadavg()[0]:.1f} (best 0)")
    networks = arguments.network or (["LeNet"] if small else list(BATCHES))
    for network in networks:
        batches = arguments.batch or ((2,) if small else BATCHES[network])
        with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
            files = _problems.write(network, max(batches), Path(folder))
            comparison = Comparison(network, pythons, lost, Path(folder), threads)
            comparison.start(stack)
            for batch in batches:
                comparison.load(files, batch)
                comparison.report(table, batch, 1 if small else arguments.repeats)
    return [table, lost] if lost.rows else [table]
