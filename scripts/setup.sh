#!/usr/bin/env bash
# Makes a virtual environment and installs smelt into it: scripts/setup.sh FOLDER [EXTRA ...]
# torch: one that is already there is left alone; otherwise the CPU build where there is no GPU.
set -euo pipefail
venv=$1; shift
extras=$(IFS=,; echo "$*")
here=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-python3}

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "smelt needs Python 3.11 or later; set PYTHON=" >&2; exit 1; }
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
pip="$venv/bin/python -m pip --disable-pip-version-check -q"

if ! "$venv/bin/python" -c 'import importlib.util, sys; sys.exit(importlib.util.find_spec("torch") is None)'; then
    wanted=${TORCH:-torch==2.13.0}
    if [ "$(uname -s)" = Linux ] && ! command -v nvidia-smi >/dev/null 2>&1; then
        # The CPU build carries the local version +cpu; set TORCH_INDEX to an index that has it if pip finds none.
        $pip install ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} "$wanted+cpu" 2>/dev/null \
            || $pip install ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} "$wanted"
    else
        $pip install "$wanted"
    fi
fi
$pip install -e "$here${extras:+[$extras]}"
"$venv/bin/python" -m compileall -q "$here/src" || true  # as pip does for packages that it copies
