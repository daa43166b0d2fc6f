"""What `tools/benchmark.py` measures, a module for each of its commands: `add_options` and `bench`."""
