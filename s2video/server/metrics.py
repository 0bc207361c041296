"""What Prometheus reads: counted from the store when it is asked for, so a restart does not reset it."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Gauge, generate_latest

from .queue import JobQueue


def metrics(queue: JobQueue) -> str:
    """Return the metrics in Prometheus' text format. Videos that were deleted do not count."""
    registry = CollectorRegistry()
    jobs = Gauge("s2video_jobs", "Videos by state", ["state"], registry=registry)
    for state, count in queue.count().items():
        jobs.labels(state).set(count)
    steps, seconds = queue.totals()
    Gauge("s2video_steps", "Denoising steps done", registry=registry).set(steps)
    Gauge("s2video_seconds", "Seconds from draw to end of videos that are done", registry=registry).set(seconds)
    return generate_latest(registry).decode()
