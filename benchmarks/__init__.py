"""What relax costs, beside what users would take in its place: `python -m benchmarks` lists it."""
