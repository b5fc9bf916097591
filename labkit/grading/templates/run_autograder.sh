#!/usr/bin/env bash
# Gradescope runs this for each submission. Whatever happens, a valid results.json lies there at the end, and the exit status is 0.
root="${AUTOGRADER_ROOT:-/autograder}"
python="${LABKIT_PYTHON:-/opt/labkit/bin/python}"
results="$root/results/results.json"

mkdir -p "$root/results"
cat > "$results" <<'END'
@NOT_GRADED@
END

cd / || exit 0
"$python" -I -m labkit.grading.gradescope \
  --submission "$root/submission" --course "$root/source" --module "@MODULE@" --seed-file "$root/source/seed.txt" --results "$results" \
  || echo "The grader stopped with status $?; the submission has no score."
exit 0
