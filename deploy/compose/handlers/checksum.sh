#!/bin/sh
# The sample handler: takes two seconds for the checksum of its job document, and prints it as the result.
set -eu

sum=$(sha256sum) # of stdin, where the job is one JSON document
echo '{"progress": 0.5, "message": "thinking it over"}' >&3
sleep 2
echo "{\"sha256\": \"${sum%% *}\", \"attempt\": $SURETY_ATTEMPT}"
