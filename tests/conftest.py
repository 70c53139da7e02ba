"""What every test runs under: a profile of Hypothesis."""

from __future__ import annotations

import os

from hypothesis import settings

# Deterministic in CI and under xdist; HYPOTHESIS_PROFILE=search draws new examples every time.
settings.register_profile("checked", derandomize=True, deadline=None, database=None)
settings.register_profile("search", deadline=None, max_examples=1000)
PROFILE = os.environ.get("HYPOTHESIS_PROFILE", "checked")
if PROFILE == "crosshair":
    # The backend is known where it is installed: in the environment of this name in tox.ini, and nowhere else.
    settings.register_profile("crosshair", backend="crosshair", deadline=None, database=None, max_examples=30)
settings.load_profile(PROFILE)
