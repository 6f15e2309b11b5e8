"""What runs in a peer's own Python.

usage: python -m bench.peers.child PEER COMMAND DSN ...

    install                          create the schema
    fill FIRST NUMBER DELAY          enqueue by any means; DELAY in seconds, or -
    single NUMBER                    wait for a line, enqueue one by one; print the seconds
    bulk NUMBER                      wait for a line, enqueue by the best call for many; likewise
    flows NUMBER                     enqueue workflows of three steps
    paced NUMBER LOW HIGH            enqueue with pauses of seconds; print when each returned
    work SETTING FILE                work until killed, note in the file what begins
    cycle SECONDS                    wait for a line, then enqueue, claim, complete; print the times
"""

from __future__ import annotations

import json
import logging
import os
import random
import sys
import threading
import time
from typing import TYPE_CHECKING

from bench.peers.base import Sink
from bench.peers.registry import load

if TYPE_CHECKING:
    from bench.peers.base import Peer

WARM_UP = 10_000_000  # numbers from here on belong to no measurement


def say(value: object) -> None:
    """Print the result."""
    print(json.dumps(value), flush=True)


def wait() -> None:
    """Wait to be told to begin."""
    say("ready")
    sys.stdin.readline()


def enqueue(peer: Peer, dsn: str, how: str, number: int) -> None:
    """Print how long it takes to enqueue so many, after a few that are not counted."""
    producer = peer.producer(dsn)
    if how == "single":
        for i in range(20):
            producer.one(WARM_UP + i)
    elif how == "bulk":
        producer.many([WARM_UP + i for i in range(20)])
    if how != "flows":
        wait()
    began = time.perf_counter()
    if how == "single":
        for i in range(number):
            producer.one(i)
    else:
        producer.many(range(number), flow=how == "flows")
    say({"seconds": time.perf_counter() - began})
    producer.close()


def paced(peer: Peer, dsn: str, number: int, low: float, high: float) -> None:
    """Enqueue with pauses; print when each call returned."""
    producer = peer.producer(dsn)
    moments = random.Random(1)
    returned = []
    for i in range(number):
        time.sleep(moments.uniform(low, high))
        producer.one(i)
        returned.append(time.time())
    say({"returned": returned})
    producer.close()


def work(peer: Peer, dsn: str, setting: str, file: str) -> None:
    """Work until standard input ends."""

    def watch() -> None:
        sys.stdin.buffer.read()
        os._exit(0)

    threading.Thread(target=watch, daemon=True).start()
    peer.work(dsn, setting, Sink(file))


def cycle(peer: Peer, dsn: str, seconds: float) -> None:
    """Print when each cycle ended and what it took."""
    once = peer.cycle(dsn)
    once()
    wait()
    samples = []
    end = time.time() + seconds
    began = time.time()
    while began < end:
        got = once()
        ended = time.time()
        if got:
            samples.append((round(ended, 5), round(ended - began, 6)))
        began = ended
    say(samples)


def main() -> None:
    """Carry out the command."""
    logging.basicConfig(level=logging.ERROR)
    peer = load(sys.argv[1])
    command, dsn, *rest = sys.argv[2:]
    if command == "install":
        peer.install(dsn)
    elif command == "fill":
        delay = None if rest[2] == "-" else float(rest[2])
        peer.fill(dsn, int(rest[0]), int(rest[1]), delay)
    elif command in ("single", "bulk", "flows"):
        enqueue(peer, dsn, command, int(rest[0]))
    elif command == "paced":
        paced(peer, dsn, int(rest[0]), float(rest[1]), float(rest[2]))
    elif command == "work":
        work(peer, dsn, *rest)
    elif command == "cycle":
        cycle(peer, dsn, float(rest[0]))
    else:
        raise SystemExit(f"unknown command {command}")
    # threads and loops of the peer may still be there
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
