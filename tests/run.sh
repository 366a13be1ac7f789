#!/bin/sh
# All checks and tests, in a virtual environment of their own, two at a time. Arguments go to pytest: `tests/run.sh -m slow`, `-k build`, `-n 0`.
set -eu
. "$(dirname "$0")/../.ci/environment"
environment "[dev]"
# Tests make and remove very many files: in memory where there is room. What is about one filesystem mounts that itself.
if [ "$(stat -f -c %T /dev/shm 2>/dev/null)" = tmpfs ] && [ "$(df --output=avail /dev/shm | tail -n 1)" -gt 4000000 ]; then
    TMPDIR=$(mktemp -d /dev/shm/mkmeta-tests-XXXXXX)
    chmod 755 "$TMPDIR" # some tests become ordinary users
    export TMPDIR
    trap 'rm -rf "$TMPDIR"' EXIT
    trap 'exit 130' INT TERM
fi
ruff format --check --quiet .
ruff check --quiet .
mypy
lint-imports >/dev/null || lint-imports
pytest -n 2 "$@"
