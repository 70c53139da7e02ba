"""Known bugs of core and drivers, each as one step that is replaced, and one fault for every clause that no known bug breaks.

`bug.py` says what a row is, `collection.py` has them all; the others hold them by the place that they are in.
"""
