#!/bin/sh
# Counts the words of {"text": …}. The job is one JSON document on stdin; the result is what is printed.
set -eu

text=$(python3 -c 'import json, sys; print(json.load(sys.stdin)["payload"]["text"])') || exit 65 # bad input: never again
echo '{"progress": 0.5, "message": "counting"}' >&3                                           # goes to the journal
printf '%s' "$text" | wc -w | tr -d ' '
