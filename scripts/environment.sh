# Sourced by the other scripts: the project's virtual environment, made when it is missing.
# ZOO_VENV is its folder, .venv by default, and PYTHON what makes it.
# Defines $python, $zoo and install_zoo SPEC [PIP_ARGUMENT ...].

find_python() {
  for candidate in "${PYTHON:-}" python3 python; do
    if [ -n "$candidate" ] && "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  echo "Python 3.10 or newer is needed; set PYTHON to its path." >&2
  return 1
}

venv=${ZOO_VENV:-.venv}
if [ ! -e "$venv/bin/python" ] && [ ! -e "$venv/Scripts/python.exe" ]; then
  base=$(find_python)
  echo "Making $venv with $($base --version)"
  "$base" -m venv "$venv"
fi
bin=$venv/bin
if [ ! -d "$bin" ]; then bin=$venv/Scripts; fi
python=$bin/python
zoo=$bin/zoo

install_zoo() {
  echo "Installing (the first time downloads PyTorch, which takes a few minutes)"
  "$python" -m pip install --quiet --disable-pip-version-check --editable "$@"
}
