"""Shared by all benchmarks: timing, measurements, the results file, tables, charts and the command line."""
