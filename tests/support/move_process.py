"""A step of a move in a process of its own, to be killed."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from typing import Any


def run_script(script: str, *told: Any) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        stdin=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert process.stdin is not None
    process.stdin.write(pickle.dumps(told))
    process.stdin.close()
    return process
