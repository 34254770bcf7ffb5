"""iNNvestigate, on a Keras model in TensorFlow's graph mode, the only one that it knows.

Graphs are built and analyzers made outside the time that is taken. Under "gradient": that of
TensorFlow, times the input.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf
from innvestigate import create_analyzer
from tensorflow.keras import Sequential, layers

from benchmarks.workers._serve import TARGET, THREADS, Worker, serve

tf.compat.v1.disable_eager_execution()
tf.config.threading.set_intra_op_parallelism_threads(THREADS)

ANALYZERS: dict[str, Any] = {
    "gradient": ("input_t_gradient", {}),
    "z": ("lrp.z", {}),
    "epsilon": ("lrp.epsilon", {"epsilon": 1e-6}),
    "alpha2_beta1": ("lrp.alpha_2_beta_1", {}),
    "sequential_preset_a": ("lrp.sequential_preset_a", {}),
    "sequential_preset_b": ("lrp.sequential_preset_b", {}),
    "sequential_preset_a_flat": ("lrp.sequential_preset_a_flat", {}),
    "sequential_preset_b_flat": ("lrp.sequential_preset_b_flat", {}),
}


def lenet() -> list[Any]:
    convolutions: list[Any] = []
    for number, width in enumerate((20, 50), 1):
        convolutions += [layers.Conv2D(width, 5, activation="relu", name=f"conv_{number}")]
        convolutions += [layers.MaxPooling2D()]
    hidden = layers.Dense(500, activation="relu", name="dense_1")
    return [*convolutions, layers.Flatten(), hidden, layers.Dense(10, name="head")]


NETWORKS = {"LeNet": lenet}


class INNvestigateWorker(Worker):
    def load(self, network: str, weights: dict[str, np.ndarray], x: np.ndarray) -> np.ndarray:
        tf.keras.backend.clear_session()
        self.x = x
        self.model = Sequential([layers.InputLayer(x.shape[1:]), *NETWORKS[network]()])
        for layer in self.model.layers:
            if layer.weights:
                names = ("kernel", "bias")
                layer.set_weights([weights[f"params/{layer.name}/{name}"] for name in names])
        self.analyzers: dict[str, Any] = {}
        return self.model.predict(x)

    @contextlib.contextmanager
    def explanation(self, method: str) -> Iterator[Any]:
        if method not in self.analyzers:
            name, options = ANALYZERS[method]
            options = {"neuron_selection_mode": "index", **options}
            self.analyzers[method] = create_analyzer(name, self.model, **options)
        analyzer = self.analyzers[method]
        yield lambda: analyzer.analyze(self.x, neuron_selection=TARGET)


if __name__ == "__main__":
    serve(INNvestigateWorker)
