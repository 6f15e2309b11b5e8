import { main, require } from "./node.mjs";

const { Logger, run, runMigrations } = require("graphile-worker");
const logger = new Logger(() => (level, message) => level === "error" && console.error(message));

// The preset of its page on performance.
const fast = {
  worker: {
    concurrentJobs: 24,
    maxPoolSize: 25,
    localQueue: { size: 500 },
    completeJobBatchDelay: 0,
    failJobBatchDelay: 0,
  },
};

await main({
  install: (connectionString) => runMigrations({ connectionString, logger }),
  work: (connectionString, setting, hit) =>
    run({
      connectionString,
      logger,
      noHandleSignals: true,
      taskList: { noop: async (payload) => hit(payload.i) },
      ...(setting === "tuned" ? { preset: fast } : { concurrency: 5 }),
    }),
});
