"""Benchmarks: figures with how they were taken. They are run by hand or by `tox -e bench`; no test asserts a time."""
