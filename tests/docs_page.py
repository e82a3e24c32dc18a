"""Runs the code of one page of the documentation from top to bottom, in the current folder, as a reader would.

python -m tests.docs_page PAGE

Python is executed in one namespace a page. YAML and text with a title become files of that name. Of shell commands,
`zoo` runs; of installations the extras, and of scripts the files, must exist.
"""

from __future__ import annotations

import re
import shlex
import sys
from importlib.metadata import metadata
from pathlib import Path

from typer.testing import CliRunner

from zoo.cli.main import app

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^( *)```(\w+)([^\n]*)\n(.*?)^\1```", re.MULTILINE | re.DOTALL)


def main(page: Path) -> None:
    """Run every block; the first that fails ends the page with its error."""
    namespace: dict[str, object] = {"__name__": "__main__"}
    for _, language, attributes, code in BLOCK.findall(page.read_text()):
        if language == "python":
            exec(compile(code, str(page), "exec"), namespace)
        elif language == "yaml":
            Path(re.search(r'title="(.+?)"', attributes)[1]).write_text(code)
        elif language == "bash":
            for line in code.replace("\\\n", " ").splitlines():
                run(shlex.split(line, comments=True))
        else:
            assert language == "text", f"{page}: nobody runs {language}"


def run(command: list[str]) -> None:
    """One line of a shell."""
    if not command:
        return
    program, *arguments = command
    if program == "zoo":
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, f"{shlex.join(command)}: {result.output}"
    elif program == "pip":
        wanted = re.findall(r"vision-zoo\[(\w+)\]", " ".join(arguments))
        assert arguments[0] == "install"
        assert set(wanted) <= set(metadata("vision-zoo").get_all("Provides-Extra")), command
    else:
        assert program in ("bash", "python"), f"nobody runs {program}"
        script = ROOT / arguments[0]
        assert script.is_file() or (script / "__main__.py").is_file(), command


if __name__ == "__main__":
    main(Path(sys.argv[1]))
