"""The `zoo` command, also as `python -m zoo`."""

from __future__ import annotations

import signal
import sys


def main() -> None:
    """Run a command; Ctrl-C, SIGTERM and a closed terminal end it alike, at any moment."""
    try:
        for name in ("SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
                signal.signal(number, signal.default_int_handler)
        from zoo.cli.main import app

        app()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
