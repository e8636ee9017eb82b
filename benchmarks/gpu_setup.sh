# Sourced by each command of GPU-RUNBOOK.md, from the root of the repository on the machine of a card: packages that are
# missing there, and where results go. They stay in /tmp/results between commands, whatever becomes of $RESULTS.
[ -d /tmp/site ] || python3 -m pip install -q --no-index --no-deps --no-compile --target /tmp/site carried/wheels/*.whl || exit
export PYTHONPATH=src:/tmp/site PYTHONUNBUFFERED=1
RESULTS=${OUT:-results}
mkdir -p "$RESULTS" /tmp/results
cp -n carried/results/*.jsonl /tmp/results 2>/dev/null
cp /tmp/results/* "$RESULTS" 2>/dev/null
trap 'cp "$RESULTS"/*.jsonl /tmp/results 2>/dev/null' EXIT
