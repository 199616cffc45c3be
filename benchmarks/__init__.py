"""Benchmarks: ``python -m benchmarks`` lists them, ``python -m benchmarks NAME`` runs one or continues it.

Each benchmark is a module of this package with a ``BENCHMARK``; how all of them measure is in ``benchmarks.frame``.
"""
