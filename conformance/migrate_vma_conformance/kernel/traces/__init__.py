"""Traces of real kernels: read, mapped to events, judged by the clauses of the contract."""
