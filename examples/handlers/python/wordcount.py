#!/usr/bin/env python3
"""Counts the words of {"text": …}: reads the job from stdin, reports on fd 3, gives its result there too."""

import json
import os
import sys

control = os.fdopen(int(os.environ["SURETY_CONTROL_FD"]), "w", buffering=1)


def tell(**line) -> None:
    control.write(json.dumps(line) + "\n")


job = json.load(sys.stdin)
text = job["payload"].get("text") if isinstance(job["payload"], dict) else None
if not isinstance(text, str):
    tell(error={"code": "bad_payload", "message": "payload.text must be a text", "retry": False})
    sys.exit(65)
words = text.split()
for n, word in enumerate(words, 1):
    if n % 1000 == 0:
        tell(progress=n / len(words), message=f"{n} of {len(words)} words")
tell(result={"words": len(words), "attempt": job["attempt"]}, usage={"bytes": len(text.encode())})
