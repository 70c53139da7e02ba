"""Threads that race for one device page of a real kernel, counted by probes, beside what the explorer proves."""
