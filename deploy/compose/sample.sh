#!/bin/sh
# The sample producer: enqueues JOBS jobs, waits for the outcome of one more, and says how to look at them.
# RUN names the batch; the same name again adds nothing, because the ids are the same.
set -eu

jobs=${JOBS:-60}
run=${RUN:-$(date +%s)}

n=0
while [ "$n" -lt "$jobs" ]; do
    n=$((n + 1))
    echo "{\"id\": \"sample-$run-$n\", \"type\": \"checksum\", \"payload\": {\"n\": $n}}"
done | surety batch - --batch-id "sample-$run"

echo "waiting for one more job:" >&2
surety enqueue checksum '"the last"' --id "sample-$run-last" --wait
echo "try: docker compose run --rm surety status sample-$run-1" >&2
