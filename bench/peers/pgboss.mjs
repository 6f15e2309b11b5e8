import { main, require } from "./node.mjs";

const { PgBoss } = require("pg-boss");

async function start(connectionString, options) {
  const boss = new PgBoss({ connectionString, ...options });
  boss.on("error", console.error);
  return boss.start();
}

const client = (dsn) => start(dsn, { supervise: false, schedule: false });

async function insert(boss, numbers, options) {
  for (let at = 0; at < numbers.length; at += 1000)
    await boss.insert(
      "bench",
      numbers.slice(at, at + 1000).map((i) => ({ data: { i }, ...options })),
    );
}

await main({
  async install(dsn) {
    const boss = await client(dsn);
    await boss.createQueue("bench", { notify: true });
  },
  async producer(dsn) {
    const boss = await client(dsn);
    return {
      one: (i) => boss.send("bench", { i }),
      many: (numbers) => insert(boss, numbers),
    };
  },
  async fill(dsn, first, number, delay) {
    const boss = await client(dsn);
    const numbers = Array.from({ length: number }, (_, i) => first + i);
    await insert(boss, numbers, delay === null ? {} : { startAfter: delay });
  },
  async work(dsn, setting, hit) {
    const tuned = setting === "tuned";
    const boss = await start(dsn, { useListenNotify: tuned });
    const handler = async (jobs) => {
      for (const job of jobs) hit(job.data.i);
    };
    if (tuned) await boss.work("bench", { batchSize: 100, burstWhenBatchFull: true }, handler);
    else await boss.work("bench", handler);
  },
  async cycle(dsn) {
    const boss = await client(dsn);
    return async () => {
      await boss.send("bench", { i: 1 });
      const [job] = await boss.fetch("bench");
      if (job) await boss.complete("bench", job.id);
      return Boolean(job);
    };
  },
});
