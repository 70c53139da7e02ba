"""Strategies that generate interleavings of a system, and what is decided on them: safety step by step, progress on cycles."""
