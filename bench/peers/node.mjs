// The commands of child.py for peers in Node.js: node SCRIPT COMMAND DSN ...
import fs from "node:fs";
import { createRequire } from "node:module";

// Where the peer's packages are.
export const require = createRequire(process.env.PEER_MODULES + "/");

const WARM_UP = 10_000_000;
const now = () => (performance.timeOrigin + performance.now()) / 1000;
const say = (value) => fs.writeSync(1, JSON.stringify(value) + "\n");
const sleep = (seconds) => new Promise((done) => setTimeout(done, seconds * 1000));
const range = (first, number) => Array.from({ length: number }, (_, i) => first + i);

function sink(file) {
  const fd = fs.openSync(file, "a");
  return (i) => fs.writeSync(fd, `${i} ${now().toFixed(6)}\n`);
}

// A line or the end of standard input.
function told(event) {
  return new Promise((done) => process.stdin.once(event, done).resume());
}

// Wait to be told to begin.
function wait() {
  say("ready");
  return told("data");
}

async function enqueue(peer, dsn, how, number) {
  const producer = await peer.producer(dsn);
  if (how === "single") for (const i of range(WARM_UP, 20)) await producer.one(i);
  else await producer.many(range(WARM_UP, 20));
  await wait();
  const began = now();
  if (how === "single") for (let i = 0; i < number; i++) await producer.one(i);
  else await producer.many(range(0, number));
  say({ seconds: now() - began });
}

async function paced(peer, dsn, number, low, high) {
  const producer = await peer.producer(dsn);
  const returned = [];
  for (let i = 0; i < number; i++) {
    await sleep(low + Math.random() * (high - low));
    await producer.one(i);
    returned.push(now());
  }
  say({ returned });
}

async function cycle(peer, dsn, seconds) {
  const once = await peer.cycle(dsn);
  await once();
  await wait();
  const samples = [];
  const end = now() + seconds;
  for (let began = now(); began < end; ) {
    const got = await once();
    const ended = now();
    if (got) samples.push([ended, ended - began]);
    began = ended;
  }
  say(samples);
}

export async function main(peer) {
  const [command, dsn, ...rest] = process.argv.slice(2);
  const numbers = rest.map(Number);
  if (command === "install") await peer.install(dsn);
  else if (command === "fill")
    await peer.fill(dsn, numbers[0], numbers[1], rest[2] === "-" ? null : numbers[2]);
  else if (command === "single" || command === "bulk") await enqueue(peer, dsn, command, numbers[0]);
  else if (command === "paced") await paced(peer, dsn, ...numbers);
  else if (command === "cycle") await cycle(peer, dsn, numbers[0]);
  else if (command === "work") {
    told("end").then(() => process.exit(0));
    await peer.work(dsn, rest[0], sink(rest[1]));
    return;
  } else throw new Error(`unknown command ${command}`);
  process.exit(0);
}
