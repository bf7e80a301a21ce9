"""Stop what a demo left running: ``python -m tenantferry.local.down``."""

from __future__ import annotations

from pathlib import Path

from tenantferry.local.fleet import stop_recorded

PROJECT_ROOT = Path(__file__).parents[3]


def main() -> int:
    """Stop it all and say what was running."""
    stopped = stop_recorded(PROJECT_ROOT / ".local")
    print(f"stopped: {', '.join(sorted(set(stopped)))}" if stopped else "nothing was running")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
