"""One process for each peer: it answers requests of `benchmarks.peers` in its own environment."""
