// A producer written from docs/protocol.md alone, with the plain NATS clients for Node.
//
// Publishes jobs, each under an id of its own, and reads the journal until every one has its outcome.
//
//   npm install
//   node producer.mjs --queue default --type noop --count 3
//
// Standard output: one line of JSON a job, as its outcome comes. Standard error: everything else.
// Exit status: 0 all are done, 1 one ended otherwise or in time nothing was heard, 2 not every job could be published.

import { randomUUID } from "node:crypto";
import { setTimeout as pause } from "node:timers/promises";
import { parseArgs } from "node:util";
import { AckPolicy, DeliverPolicy, jetstream, jetstreamManager } from "@nats-io/jetstream";
import { connect, headers } from "@nats-io/transport-node";

const text = (fallback) => ({ type: "string", default: fallback });
const { values: a } = parseArgs({
  options: {
    nats: text(process.env.NATS_URL ?? "nats://127.0.0.1:4222"),
    namespace: text("surety"),
    queue: text("default"),
    type: text("noop"),
    payload: text("{}"),
    count: text("1"),
    patience: text("60"),
  },
});

/** Why a publish failed for good. */
function why(error, job) {
  // Nobody answers on the subject. (The client takes that for a server without JetStream.)
  if (error.name === "JetStreamNotEnabled") {
    return `queue "${a.queue}" is not declared (surety provision)`;
  }
  return `${job.id}: stored or not, publish it again: ${error.message}`;
}

/** Publishes a job and waits until it is stored. True: this very id was stored before. */
async function publish(js, job) {
  const h = headers();
  h.set("Nats-Msg-Id", job.id);
  for (let left = 4; ; left -= 1) {
    try {
      // The message id makes the repeat safe: a publish whose answer was lost may have been stored.
      const ack = await js.publish(`${a.namespace}.jobs.${a.queue}.${job.id}`, JSON.stringify(job), { headers: h, timeout: 2000 });
      return ack.duplicate;
    } catch (error) {
      if (left === 0) throw new Error(why(error, job), { cause: error });
      await pause(200);
    }
  }
}

/** Yields the receipt of each wanted job, once, from the journal of its queue. */
async function* outcomes(js, jsm, stream, wanted, start) {
  const { name } = await jsm.consumers.add(stream, {
    ack_policy: AckPolicy.None,
    deliver_policy: DeliverPolicy.StartSequence,
    opt_start_seq: start,
    filter_subject: `${a.namespace}.events.${a.queue}.ended`,
    inactive_threshold: 30e9,
  });
  const reader = await js.consumers.get(stream, name);
  const seen = new Set();
  const end = Date.now() + Number(a.patience) * 1000;
  while (seen.size < wanted.size && Date.now() < end) {
    for await (const message of await reader.fetch({ max_messages: 100, expires: 1000 })) {
      // A journal message is an array of events. Unknown kinds and fields are for others.
      for (const event of message.json()) {
        if (event.kind === "finished" && wanted.has(event.job) && !seen.has(event.job)) {
          seen.add(event.job);
          yield event.data.receipt;
        }
      }
      if (seen.size === wanted.size) return;
    }
  }
}

async function main() {
  const nc = await connect({ servers: a.nats.split(","), name: "surety-node-producer", timeout: 5000 });
  try {
    const [js, jsm] = [jetstream(nc), await jetstreamManager(nc)];
    const stream = `${a.namespace.toUpperCase()}_EVENTS`;
    // Remembered before the first publish, so that no outcome is missed.
    const start = (await jsm.streams.info(stream)).state.last_seq + 1;
    const wanted = new Set();
    for (let n = 1; n <= Number(a.count); n += 1) {
      const job = { v: 1, id: randomUUID(), type: a.type, payload: JSON.parse(a.payload), summary: `${a.type} ${n} of ${a.count}` };
      const duplicate = await publish(js, job);
      console.error(`${job.id} stored${duplicate ? " before" : ""}`);
      wanted.add(job.id);
    }
    let [ended, done] = [0, 0];
    for await (const receipt of outcomes(js, jsm, stream, wanted, start)) {
      ended += 1;
      done += receipt.outcome === "done" ? 1 : 0;
      console.log(JSON.stringify(receipt));
    }
    if (ended < wanted.size) console.error(`${wanted.size - ended} of ${wanted.size} jobs have no outcome after ${a.patience} s`);
    return done === wanted.size ? 0 : 1;
  } finally {
    await nc.close();
  }
}

try {
  process.exitCode = await main();
} catch (error) {
  console.error(String(error.message ?? error));
  process.exitCode = 2;
}
