"""The same operations on a real kernel, on the simulated core and on the reference model."""
