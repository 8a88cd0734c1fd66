"""Parts of `bench_rate_distortion.py`: points, families, evaluation, measurement, report."""
