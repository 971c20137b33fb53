#!/bin/sh
# Prints the path of a Python 3.11 or 3.12 called like the argument (python3, python3.12, a path).
# A name on PATH may be a pyenv shim of a version that is not active: such a shim fails when run, so
# every candidate is run, and pyenv's own versions are looked through after PATH.
set -u
wanted="${1:-python3}"

path_of() {
  "$1" -c 'import sys
assert (3, 11) <= sys.version_info[:2] <= (3, 12)
print(sys.executable)' 2>/dev/null
}

names="$wanted"
# Any supported version will do for the default.
[ "$wanted" = python3 ] && names="python3 python3.11 python3.12"
for name in $names; do
  path_of "$name" && exit 0
  for candidate in "${PYENV_ROOT:-$HOME/.pyenv}"/versions/*/bin/"$name"; do
    [ -x "$candidate" ] && path_of "$candidate" && exit 0
  done
done

if version="$("$wanted" --version 2>/dev/null)"; then
  echo "$wanted is $version; Python 3.11 or 3.12 is needed. Install one, or name it: make PYTHON=/path/to/python3.11" >&2
else
  echo "$wanted cannot be run here; install it, or name another: make PYTHON=/path/to/python3.11" >&2
fi
exit 1
