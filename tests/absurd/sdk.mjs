// What the published TypeScript SDK does, in one run; prints what it saw as JSON.
// The SDK and pg lie where ABSURD_NPM says; libpq's variables say where the database is.
import { createRequire } from "node:module";

const require = createRequire(`${process.env.ABSURD_NPM}/package.json`);
const { Absurd } = require("absurd-sdk");
const pg = require("pg");

const options = {
  host: process.env.PGHOST, port: Number(process.env.PGPORT || 5432), user: process.env.PGUSER,
  password: process.env.PGPASSWORD, database: process.env.PGDATABASE,
};
const start = Date.parse("2027-01-01T00:00:00Z");
const seen = {};

const client = new pg.Client(options);
await client.connect();
let now = start;
Date.now = () => now;

async function setTime(seconds) {
  now = start + seconds * 1000;
  await client.query("select set_config('absurd.fake_now', $1, false)", [new Date(now).toISOString()]);
}

const quiet = { log() {}, info() {}, warn() {}, error() {} };
const traced = [];
const app = new Absurd({
  db: client,
  log: quiet,
  hooks: {
    beforeSpawn: async (name, params, given) => ({ ...given, headers: { trace: name } }),
    wrapTaskExecution: async (ctx, execute) => {
      traced.push(ctx.headers.trace);
      return await execute();
    },
  },
});
const children = new Absurd({ db: client, queueName: "children", log: quiet });
await setTime(0);
await app.createQueue();
await children.createQueue("children", { storageMode: "partitioned", cleanupLimit: 7 });
seen.queues = await app.listQueues();
seen.policy = await children.getQueuePolicy();

// Spawn a task and work at the times given; what is left then is cancelled.
async function finish(name, params, given, ...times) {
  await setTime(0);
  const spawned = await app.spawn(name, params, given);
  for (const seconds of times) {
    if (typeof seconds === "function") {
      await seconds(spawned);
    } else {
      await setTime(seconds);
    }
    await app.workBatch();
  }
  const found = await app.fetchTaskResult(spawned.taskID);
  await app.cancelTask(spawned.taskID);
  return found.state === "completed" ? found.result : found.state;
}

app.registerTask({ name: "order" }, async (params, ctx) => {
  const payment = await ctx.step("pay", async () => ({ id: `pay-${params.id}` }));
  const shipment = await ctx.awaitEvent(`shipment.packed:${params.id}`);
  return { payment, tracking: shipment.tracking };
});
seen.order = await finish("order", { id: 42 }, {}, 0, () =>
  app.emitEvent("shipment.packed:42", { tracking: "XYZ" }));

app.registerTask({ name: "sleepy" }, async (params, ctx) => {
  await ctx.sleepFor("nap", 60);
  return "awake";
});
seen.sleepsStill = await finish("sleepy", null, {}, 0, 59);
seen.sleepy = await finish("sleepy", null, {}, 0, 60);

app.registerTask({ name: "patient" }, async (params, ctx) => {
  try {
    return await ctx.awaitEvent("never", { timeout: 10 });
  } catch (error) {
    if (error.name !== "TimeoutError") {
      throw error;
    }
    return "gave up";
  }
});
seen.patient = await finish("patient", null, {}, 0, 10);

let tries = 0;
app.registerTask({ name: "flaky" }, async (params, ctx) => {
  const first = await ctx.step("count", async () => ++tries);
  if (ctx.task.attempt < 3) {
    throw new Error("not yet");
  }
  return [first, tries, ctx.task.attempt];
});
seen.flaky = await finish(
  "flaky", null, { retryStrategy: { kind: "fixed", baseSeconds: 5 } }, 0, 4, 5, 10);

app.registerTask({ name: "bad", defaultMaxAttempts: 1 }, async () => {
  throw new Error("bad");
});
await setTime(0);
const bad = await app.spawn("bad", null);
await app.workBatch();
seen.bad = (await app.fetchTaskResult(bad.taskID)).failure.message;
const retried = await app.retryTask(bad.taskID);
seen.retried = [retried.taskID === bad.taskID, retried.attempt, retried.created];
await app.cancelTask(bad.taskID);
seen.cancelled = (await app.fetchTaskResult(bad.taskID)).state;

app.registerTask({ name: "doomed" }, async (params, ctx) => {
  await app.cancelTask(ctx.taskID);
  await ctx.heartbeat();
  throw new Error("not reached");
});
seen.doomed = await finish("doomed", null, {}, 0);

app.registerTask({ name: "beats" }, async (params, ctx) => {
  await setTime(100);
  await ctx.heartbeat(50);
  await setTime(149);
  return (await app.claimTasks({ batchSize: 1, claimTimeout: 10, workerId: "thief" })).length;
});
seen.beats = await finish("beats", null, {}, 0);

app.registerTask({ name: "limited" }, async (params, ctx) => ctx.sleepFor("nap", 1000));
seen.limited = await finish("limited", null, { cancellation: { maxDuration: 60 } }, 0, 60);

const once = await app.spawn("order", { id: 1 }, { idempotencyKey: "k" });
const twice = await app.spawn("order", { id: 2 }, { idempotencyKey: "k" });
seen.once = [once.taskID === twice.taskID, once.created, twice.created];
await app.cancelTask(once.taskID);

children.registerTask({ name: "child" }, async (params) => params + 1);
app.registerTask({ name: "parent" }, async (params, ctx) => {
  const id = await ctx.step("spawn", async () => (await children.spawn("child", 41)).taskID);
  await children.workBatch();
  return await ctx.awaitTaskResult(id, { queue: "children", timeout: 5 });
});
seen.parent = await finish("parent", null, {}, 0);
seen.traced = traced.filter((name, place) => traced.indexOf(name) === place);
await children.dropQueue("children");
await client.end();

// the quickstart of its documentation: a worker that polls, with a pool
const pool = new pg.Pool(options);
const polling = new Absurd({ db: pool, log: quiet, queueName: "default" });
polling.registerTask({ name: "hello-world" }, async (params, ctx) => {
  return await ctx.step("greet", async () => ({ greeting: `World, ${params.name}!` }));
});
await polling.startWorker({ pollInterval: 0.01, concurrency: 4 });
const hello = await polling.spawn("hello-world", { name: "World" });
seen.hello = await polling.awaitTaskResult(hello.taskID);
await polling.close();
await pool.end();

console.log(JSON.stringify(seen));
