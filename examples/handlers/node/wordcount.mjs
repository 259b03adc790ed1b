#!/usr/bin/env node
// Counts the words of {"text": …}: reads the job from stdin, reports on fd 3, gives its result there too.
import { readFileSync, writeSync } from "node:fs";

const control = Number(process.env.SURETY_CONTROL_FD);
const tell = (line) => writeSync(control, JSON.stringify(line) + "\n");

const job = JSON.parse(readFileSync(0, "utf8"));
const text = job.payload?.text;
if (typeof text !== "string") {
  tell({ error: { code: "bad_payload", message: "payload.text must be a text", retry: false } });
  process.exit(65);
}
tell({ progress: 0.5, message: "counting" });
tell({ result: { words: text.split(/\s+/).filter(Boolean).length, attempt: job.attempt } });
