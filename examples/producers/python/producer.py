#!/usr/bin/env python3
"""A producer written from docs/protocol.md alone, with the plain NATS client for Python.

Publishes jobs, each under an id of its own, and reads the journal until every one has its outcome.

    pip install nats-py
    python3 producer.py --queue default --type noop --count 3

Standard output: one line of JSON a job, as its outcome comes. Standard error: everything else.
Exit status: 0 all are done, 1 one ended otherwise or in time nothing was heard, 2 not every job could be published.
"""

import argparse
import asyncio
import json
import os
import sys
import uuid

import nats
from nats.errors import Error, NoRespondersError, TimeoutError
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy
from nats.js.errors import APIError, NoStreamResponseError


class NotPublished(Exception):
    """Nothing more is published; the text says why."""


def say(text: str) -> None:
    print(text, file=sys.stderr)


async def publish(js, namespace: str, queue: str, job: dict) -> bool:
    """Publishes a job and waits until it is stored. True: this very id was stored before."""
    subject = f"{namespace}.jobs.{queue}.{job['id']}"
    body = json.dumps(job).encode()
    for left in (4, 3, 2, 1, 0):
        try:
            # The message id makes the repeat safe: a publish whose answer was lost may have been stored.
            ack = await js.publish(subject, body, headers={"Nats-Msg-Id": job["id"]}, timeout=2)
            return bool(ack.duplicate)
        except (NoStreamResponseError, NoRespondersError):
            # Nobody answers on the subject: the queue is not declared, or the cluster elects a leader.
            if left == 0:
                raise NotPublished(f"queue {queue!r} is not declared (surety provision)") from None
        except (TimeoutError, APIError) as error:
            if left == 0:
                raise NotPublished(f"{job['id']}: stored or not, publish it again: {error}") from None
        await asyncio.sleep(0.2)
    raise AssertionError("unreachable")


async def outcomes(js, namespace: str, queue: str, wanted: set, start: int, patience: float):
    """Yields the receipt of each wanted job, once, from the journal of its queue."""
    seen = set()
    reader = await js.pull_subscribe(
        f"{namespace}.events.{queue}.ended",
        stream=f"{namespace.upper()}_EVENTS",
        config=ConsumerConfig(
            ack_policy=AckPolicy.NONE,
            deliver_policy=DeliverPolicy.BY_START_SEQUENCE,
            opt_start_seq=start,
            inactive_threshold=30,
        ),
    )
    end = asyncio.get_running_loop().time() + patience
    while seen != wanted and asyncio.get_running_loop().time() < end:
        try:
            messages = await reader.fetch(100, timeout=1)
        except TimeoutError:
            continue
        for message in messages:
            # A journal message is an array of events. Unknown kinds and fields are for others.
            for event in json.loads(message.data):
                job = event.get("job")
                if event.get("kind") == "finished" and job in wanted and job not in seen:
                    seen.add(job)
                    yield event["data"]["receipt"]


async def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--nats", default=os.environ.get("NATS_URL", "nats://127.0.0.1:4222"))
    arguments.add_argument("--namespace", default="surety")
    arguments.add_argument("--queue", default="default")
    arguments.add_argument("--type", default="noop")
    arguments.add_argument("--payload", type=json.loads, default={}, help="JSON")
    arguments.add_argument("--count", type=int, default=1)
    arguments.add_argument("--patience", type=float, default=60, help="seconds to wait for the outcomes")
    a = arguments.parse_args()

    async def on_error(error: Exception) -> None:
        say(f"nats: {error or type(error).__name__}")

    try:
        nc = await nats.connect(
            a.nats, name="surety-python-producer", connect_timeout=5, max_reconnect_attempts=5, error_cb=on_error
        )
    except (Error, OSError) as error:
        say(f"no NATS at {a.nats}: {error}")
        return 2
    # A broker that is busy may take its time to describe a stream and to make a consumer.
    js = nc.jetstream(timeout=30)

    # Remembered before the first publish, so that no outcome is missed.
    info = await js.stream_info(f"{a.namespace.upper()}_EVENTS")
    start = info.state.last_seq + 1

    jobs = [
        {"v": 1, "id": str(uuid.uuid4()), "type": a.type, "payload": a.payload, "summary": f"{a.type} {n + 1} of {a.count}"}
        for n in range(a.count)
    ]
    for job in jobs:
        duplicate = await publish(js, a.namespace, a.queue, job)
        say(f"{job['id']} stored{' before' if duplicate else ''}")

    wanted, ended, done = {job["id"] for job in jobs}, 0, 0
    async for receipt in outcomes(js, a.namespace, a.queue, wanted, start, a.patience):
        ended += 1
        done += receipt["outcome"] == "done"
        print(json.dumps(receipt), flush=True)
    await nc.close()
    if ended < len(wanted):
        say(f"{len(wanted) - ended} of {len(wanted)} jobs have no outcome after {a.patience} s")
    return 0 if done == len(wanted) else 1


if __name__ == "__main__":
    try:
        sys.exit(asyncio.run(main()))
    except NotPublished as reason:
        say(str(reason))
        sys.exit(2)
