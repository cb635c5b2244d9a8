"""What the server counts, in the format of Prometheus."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.1, 0.3, 1, 3, 10, 30, 60, 120, 300, 600, 1800, 3600)


class Metrics:
    """Counters of one server.

    Args:
        counts: Says how many jobs there are in a state.
    """

    def __init__(self, counts: Callable[[], dict[str, int]]) -> None:
        self.registry = CollectorRegistry()
        self.jobs = Counter("ltx2_jobs", "Jobs that ended.", ["state"], registry=self.registry)
        self.steps = Counter("ltx2_steps", "Denoising steps that were made.", registry=self.registry)
        self.worker_deaths = Counter(
            "ltx2_worker_deaths", "Workers that ended while they ran a job.", registry=self.registry
        )
        self.refused = Counter(
            "ltx2_refused_requests", "Requests that were refused.", ["status"], registry=self.registry
        )
        self.seconds = Histogram(
            "ltx2_call_seconds", "How long calls of a pipeline took.", buckets=_SECONDS, registry=self.registry
        )
        self._counts = counts
        self._present = Gauge("ltx2_jobs_present", "Jobs that wait or run.", ["state"], registry=self.registry)

    def page(self) -> bytes:
        """All of them as Prometheus reads them."""
        for state, count in self._counts().items():
            self._present.labels(state).set(count)
        return generate_latest(self.registry)
