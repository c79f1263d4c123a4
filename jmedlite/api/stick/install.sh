#!/bin/sh
# Installs jmedlite from this folder, without a network: sh install.sh [FOLDER]   (README.html says more)
here=$(CDPATH= cd -- "$(dirname -- "$0")" && pwd) || exit 1
unset PYTHONHOME PYTHONPATH
for python in python@PYTHON@ python3 python; do
    if command -v "$python" >/dev/null 2>&1 &&
        "$python" -c 'import sys; sys.exit(not sys.version.startswith("@PYTHON@."))' 2>/dev/null; then
        exec "$python" -B "$here/install.py" "$@"
    fi
done
echo "Python @PYTHON@ was not found; install it, then run this again (README.html)." >&2
echo "Python @PYTHON@ が見つかりません。インストールしてから、もう一度実行してください（README.html を参照）。" >&2
exit 69
