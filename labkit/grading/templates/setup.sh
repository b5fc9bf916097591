#!/usr/bin/env bash
# Gradescope runs this once, as root, when it makes the container: an environment with labkit, and files that are for root alone.
set -euo pipefail
source="${AUTOGRADER_ROOT:-/autograder}/source"
place="${LABKIT_PLACE:-/opt/labkit}"
cd "$source"

usable() { "$1" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2> /dev/null; }
found=""
for name in python@PYTHON@ python3.13 python3.12 python3.11 python3; do
  if usable "$name"; then found="$name"; break; fi
done
if [ -z "$found" ]; then
  apt-get update
  for version in @PYTHON@ 3.13 3.12 3.11; do
    if apt-get install -y "python$version" "python$version-venv" && usable "python$version"; then found="python$version"; break; fi
  done
fi
if [ -z "$found" ]; then
  echo "labkit needs Python 3.11 or newer; choose a newer base image." >&2
  exit 1
fi

# Where every user may read it: a submission runs as a user of its own.
"$found" -m venv "$place"
"$place/bin/python" -m pip install --quiet --upgrade pip
"$place/bin/python" -m pip install --quiet --requirement requirements-torch.txt
"$place/bin/python" -m pip install --quiet --requirement requirements.txt
chmod -R a+rX "$place"
chmod -R go-rwx "$source"

# Says in the log how submissions will be shut in. The containers that grade may offer another level than the one that is made here.
"$place/bin/python" -I -c 'from labkit.grading.isolation import probe; print(probe().says)' \
  || echo "WARNING: nothing shuts a submission in here. Where the same holds for Test Autograder, no submission will get a score." >&2
