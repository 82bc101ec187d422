"""Benchmarks: `python -m bench [NAME...]` measures every number the project claims, side by side with eager."""
