"""How soon each page of the dashboard is painted, and what it looks like.

A queue with a million finished tasks, a worker at work, and a little of everything else. Of each
page the first contentful paint in Chromium is measured, each time with an empty cache, and
screenshots go into build/screenshots: light, dark, and as a phone shows it.

usage: python bench/dashboard.py [--tasks 1000000] [--loads 5] [--minutes 1]
"""

from __future__ import annotations

import argparse
import logging
import os
import random
import shutil
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from playwright.sync_api import sync_playwright

import teguh
from bench.common import (
    TEGUH_SQL,
    add_server_options,
    connect,
    database_of,
    percentile,
    scalar,
    server_of,
)
from bench.inspection import fill
from teguh.server import create_app
from tests.dashboard import scene
from tests.server.support import serving

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Browser, Page

SHOTS = Path(__file__).resolve().parent.parent / "build" / "screenshots"
LOOKS = {
    "light": {"color_scheme": "light", "viewport": {"width": 1280, "height": 800}},
    "dark": {"color_scheme": "dark", "viewport": {"width": 1280, "height": 800}},
    "phone": {"color_scheme": "light", "viewport": {"width": 360, "height": 740}},
}
PAINT = """
() => new Promise(found => new PerformanceObserver((list, observer) => {
  for (const entry of list.getEntriesByName("first-contentful-paint")) {
    observer.disconnect();
    found(entry.startTime);
  }
}).observe({type: "paint", buffered: true}))
"""

tasks = teguh.Registry()


@tasks.task("*")
def handle(ctx: teguh.TaskContext) -> float:
    """Take a moment; one in twenty fails once."""
    if ctx.failures == 0 and random.random() < 0.05:
        raise ValueError("it was not to be")
    time.sleep(random.lognormvariate(-4, 1))
    return random.random()


@contextmanager
def busy(dsn: str) -> Iterator[None]:
    """Have a worker at work, and tasks for it."""
    worker = teguh.Worker(dsn, "live", tasks, concurrency=4)
    stopped = threading.Event()

    def spawn() -> None:
        with teguh.Client.connect(dsn) as client:
            while not stopped.wait(0.5):
                names = random.choices(("resize", "thumbnail", "index"), k=random.randint(2, 20))
                client.spawn_tasks("live", [teguh.NewTask(name) for name in names])

    threads = [threading.Thread(target=target) for target in (worker.run, spawn)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stopped.set()
        worker.stop()
        for thread in threads:
            thread.join()


def paths(there: scene.Scene, finished: str) -> dict[str, str]:
    """Return the pages, by the name of their pictures."""
    orders = "/queues/orders"
    return {
        "overview": "/",
        "queue-a-million": "/queues/q",
        "queue-live": "/queues/live",
        "queue-orders": orders,
        "tasks-a-million": "/queues/q/tasks",
        "tasks-failed-a-million": "/queues/q/tasks?state=failed",
        "tasks": f"{orders}/tasks",
        "task-of-a-million": f"/queues/q/tasks/{finished}",
        "task": f"{orders}/tasks/{there.order}",
        "task-failed": f"{orders}/tasks/{there.failed}",
        "task-running": f"{orders}/tasks/{there.running}",
        "task-waiting": f"{orders}/tasks/{there.waiting}",
        "task-large": f"{orders}/tasks/{there.large}",
        "dead-letters-a-million": "/queues/q/dead-letters",
        "dead-letters": f"{orders}/dead-letters",
        "events": f"{orders}/events",
        "actions": f"{orders}/actions",
        "schedules": "/schedules",
        "schedule": "/schedule?name=nightly",
        "workers": "/workers",
        "workflow-runs": "/workflow-runs",
        "workflow-run": f"/workflow-runs/{there.workflow}",
        "cancel-what-matches": "/act/cancel-tasks?queue=q&state=pending",
        "retry": f"/act/retry-task?queue=orders&task_id={there.failed}",
        "not-found": "/queues/nowhere",
    }


def paint(browser: Browser, url: str) -> float:
    """Return after how many milliseconds a page that was never seen shows something."""
    with browser.new_context() as context:
        page = context.new_page()
        page.goto(url)
        return float(page.evaluate(PAINT))


def picture(page: Page, url: str, path: Path) -> None:
    """Write what a page looks like."""
    page.goto(url)
    page.screenshot(path=path, full_page=True)


def measure(browser: Browser, url: str, pages: dict[str, str], loads: int) -> None:
    """Print the first contentful paint of each page, in milliseconds."""
    print(f"{'first contentful paint, ms':28} {'median':>7} {'worst':>7}")
    for name, path in pages.items():
        times = [paint(browser, url + path) for _ in range(loads)]
        print(f"{name:28} {percentile(times, 0.5):>7.0f} {max(times):>7.0f}", flush=True)


def main() -> None:
    """Fill a database, serve it, look at each page."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_server_options(parser)
    parser.add_argument("--tasks", type=int, default=1_000_000, help="finished tasks")
    parser.add_argument("--loads", type=int, default=5, help="loads of each page")
    parser.add_argument("--minutes", type=float, default=1, help="how long the worker works first")
    options = parser.parse_args()
    chromium = shutil.which("chromium")
    if chromium is None:
        sys.exit("there is no chromium: apt-get install chromium")
    logging.disable(logging.WARNING)  # the worker's, of tasks that fail on purpose
    SHOTS.mkdir(parents=True, exist_ok=True)
    with server_of(options) as server, database_of(server, "dashboard", TEGUH_SQL) as dsn:
        with connect(dsn) as connection:
            fill(connection, options.tasks, 1000)
            finished = scalar(
                connection,
                "select task_id::text from teguh.list_tasks('q', '{\"state\": \"completed\"}')",
            )
        with teguh.Client.connect(dsn) as client:
            client.create_queue("live")
            pages = paths(scene.fill(client), finished)
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        with busy(dsn), serving(create_app(dsn)) as url, sync_playwright() as playwright:
            time.sleep(60 * options.minutes)
            browser = playwright.chromium.launch(executable_path=chromium, args=arguments)
            measure(browser, url, pages, options.loads)
            for look, settings in LOOKS.items():
                with browser.new_context(**settings) as context:  # type: ignore[arg-type]
                    page = context.new_page()
                    for name, path in pages.items():
                        picture(page, url + path, SHOTS / f"{name}.{look}.png")
            browser.close()
        print(f"\nload of the last 5 minutes {os.getloadavg()[1]:.1f}; pictures in {SHOTS}")


if __name__ == "__main__":
    main()
