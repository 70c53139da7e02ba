"""The machine that the simulated kernel runs on: CPUs, tasks, shared state as one value, and the traps that change it."""
