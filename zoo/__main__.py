"""The `zoo` command, also as `python -m zoo`."""

from __future__ import annotations

import signal
import sys


def main() -> None:
    """Run a command; Ctrl-C and SIGTERM end it alike, at any moment."""
    try:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        from zoo.cli.main import app

        app()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
