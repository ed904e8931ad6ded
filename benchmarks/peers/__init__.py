"""What `benchmarks/sweep.py` is measured against: other ways to patch one cell after another."""
