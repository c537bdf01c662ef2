"""Benchmarks: how long the operations take, beside what PyTorch has and beside what the machine could do.

`bench_<operation>.py` is a command for each operation; `gpu.py` runs the tests and all of them on a GPU. They need what
the kernels need; plots need the whole project.
"""
