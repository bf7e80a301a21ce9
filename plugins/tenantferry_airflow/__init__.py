"""Airflow's face of Tenantferry: operators, sensors and triggers around the engine's verbs."""

import sys
from pathlib import Path

# The engine lies in include/. Astro and our own runners put that folder on PYTHONPATH; a plain
# "airflow standalone" does not. At the end of the path it can shadow nothing.
_ENGINE = str(Path(__file__).resolve().parents[2] / "include")
if _ENGINE not in sys.path:
    sys.path.append(_ENGINE)
