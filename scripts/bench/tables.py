"""Rewrites the model table of README.md, and prints the table of whole models on a CPU.

python scripts/bench tables
"""

from __future__ import annotations

from bench import readme_table, speed_table


def main() -> None:
    """Rewrite the README's table of variants, and print its table of speed."""
    readme_table.write()
    speed_table.show()
