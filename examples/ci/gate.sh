#!/bin/sh
# Audits the client that leakmap.toml describes and ends with leakmap's exit code: 0 the level of its gate is not
# reached, 1 it is reached, 2 the audit is inconclusive, more: no result. Any but 0 should stop a pipeline.
#
#   sh gate.sh [REPORTS]     folder for everything that is written; reports by default
#
# Where baseline.json lies beside it, only what is worse than that result fails. To accept a result as the new baseline:
# cp reports/audit/result.json baseline.json
set -eu
here=$(dirname "$0")
reports=${1:-reports}
baseline=$here/baseline.json
mkdir -p "$reports"

set -- --config "$here/leakmap.toml" --out "$reports/audit"
set -- "$@" --junit "$reports/junit.xml" --sarif "$reports/leakmap.sarif" --markdown "$reports/leakmap.md"
if [ -f "$baseline" ]; then
    set -- "$@" --baseline "$baseline"
fi
code=0
leakmap audit "$@" || code=$?

# The run's folder holds pictures and stays on the runner; what is kept of it holds none.
if [ "$code" -le 2 ] && [ ! -e "$reports/evidence" ]; then
    leakmap bundle "$reports/audit" --out "$reports/evidence" --no-pictures
fi
exit "$code"
