"""PyTorch's own gradient times the input: the floor of the peers built on it."""

from benchmarks.workers._serve import serve
from benchmarks.workers._torch import TorchWorker

if __name__ == "__main__":
    serve(TorchWorker)
