"""The conformance kit: judges cores, drivers and traces against the migrate_vma contract, and reports what it found.

Importing this package imports nothing else of the kit, so that the pytest plugin and the command line start at once.
"""

__version__ = "0.1.0"
