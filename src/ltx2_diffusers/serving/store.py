"""The jobs of a server, in a database that outlives it. What is not there did not happen."""

import importlib.util
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sql

from .jobs import Job

QUEUED, RUNNING, DONE, FAILED, CANCELLED = "queued", "in_progress", "completed", "failed", "cancelled"
FINISHED = (DONE, FAILED, CANCELLED)
# How often a job may begin: one whose worker dies each time would otherwise run for ever.
MOST_ATTEMPTS = 3
# A server that says nothing about its job for so long is taken for dead by others on the same database.
LEASE_S = 60.0

# What is raised while the database cannot be reached, or is too busy.
AWAY = (sql.exc.OperationalError, sql.exc.InterfaceError, sql.exc.InternalError, sql.exc.TimeoutError)
# What installs the driver that the database of several servers needs.
_DRIVER = "pip install 'ltx2-diffusers[postgres]'"
# A server that stops in the middle of a change holds up the others no longer than this.
_WAIT_MS = 30_000
_PATIENCE = {"connect_timeout": "10", "tcp_user_timeout": str(_WAIT_MS)}
# The lock of PostgreSQL that those take who add a job: any number, but one for all servers.
_ADDING = 0x4C545832

_META = sql.MetaData()
_JOBS = sql.Table(
    "ltx2_jobs",
    _META,
    sql.Column("id", sql.String(64), primary_key=True),
    sql.Column("tenant", sql.String(64), nullable=False, index=True),
    # Names that clients give a request, so that one sent twice is done once.
    sql.Column("request_key", sql.String(255)),
    sql.Column("waited_for", sql.Boolean, nullable=False),
    sql.Column("state", sql.String(16), nullable=False, index=True),
    sql.Column("created", sql.Float, nullable=False, index=True),
    sql.Column("started", sql.Float),
    sql.Column("finished", sql.Float, index=True),
    sql.Column("attempts", sql.Integer, nullable=False, default=0),
    sql.Column("owner", sql.String(255)),
    sql.Column("lease", sql.Float),
    sql.Column("batch_key", sql.Text),
    sql.Column("job", sql.Text, nullable=False),
    sql.Column("result", sql.Text),
    sql.Column("error", sql.Text),
    sql.UniqueConstraint("tenant", "request_key"),
)


class QueueFull(Exception):
    """No further job can wait.

    Args:
        retry_after_s: When one may, in seconds.
    """

    def __init__(self, retry_after_s: int) -> None:
        super().__init__(f"the queue is full; ask again in {retry_after_s} s")
        self.retry_after_s = retry_after_s


@dataclass(frozen=True)
class Row:
    """A job as the database knows it.

    Args:
        id, tenant, waited_for, state, created, started, finished, attempts, job: As stored; times in seconds since 1970.
        result, error: What came of it. Of a storyboard that is not finished, `result` has `shots`, how many are, and
            `attempts`, at which the latest one was.
    """

    id: str
    tenant: str
    waited_for: bool
    state: str
    created: float
    started: float | None
    finished: float | None
    attempts: int
    job: str
    result: dict[str, Any] | None
    error: dict[str, str] | None


_COLUMNS = [_JOBS.c[name] for name in Row.__annotations__]


def database_url(text: str) -> sql.URL:
    """The URL of a database, with the driver that the package takes.

    Args:
        text: `sqlite:///FILE`, or `postgresql://USER:PASSWORD@HOST/NAME` with what else libpq understands.

    Raises:
        ValueError: If it is none of the two, or the driver is not installed.
    """
    try:
        url = sql.make_url(text)
    except (sql.exc.ArgumentError, ValueError):
        raise ValueError("the database has to be sqlite:///FILE or postgresql://USER:PASSWORD@HOST/NAME") from None
    if url.drivername in ("sqlite", "sqlite+pysqlite"):
        return url
    if url.drivername not in ("postgresql", "postgres", "postgresql+psycopg"):
        raise ValueError(f"the database has to be sqlite:///FILE or postgresql://..., but is {url.drivername}://")
    if importlib.util.find_spec("psycopg") is None:
        raise ValueError(f"PostgreSQL needs psycopg; install it with: {_DRIVER}")
    # What the URL itself says comes first.
    return url.set(drivername="postgresql+psycopg", query={**_PATIENCE, **url.query})


def open_database(text: str) -> sql.Engine:
    """The database of a URL, with the table of jobs.

    Raises:
        ValueError: If the URL is wrong, or no database answers there.
    """
    url = database_url(text)
    # Errors are logged; what people ask for is not.
    if url.get_backend_name() == "sqlite":
        engine = sql.create_engine(url, hide_parameters=True)
        sql.event.listen(engine, "connect", _set_up_sqlite)
    else:
        # A change counts on seeing what others have changed. Connections that a restart of the database has cut are
        # made anew.
        engine = sql.create_engine(url, hide_parameters=True, isolation_level="READ COMMITTED", pool_pre_ping=True)
        sql.event.listen(engine, "connect", _set_up_postgresql)
    try:
        with _alone(engine) as connection:
            _META.create_all(connection)
    except sql.exc.DBAPIError as error:
        engine.dispose()
        raise ValueError(f"the database {url.render_as_string()} cannot be used: {error.orig}") from error
    return engine


@contextmanager
def _alone(engine: sql.Engine) -> Iterator[sql.Connection]:
    """A transaction beside which no other of its kind runs, in whichever server."""
    with engine.begin() as connection:
        if engine.dialect.name == "sqlite":
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        else:
            connection.execute(sql.select(sql.func.pg_advisory_xact_lock(_ADDING)))
        yield connection


class Store:
    """Jobs in a database. Each change is one transaction, and says of which state it is a change.

    Args:
        url: Of the database; see `database_url`.
        owner: What tells this server from others.
        max_queue: Most jobs that wait, whichever server was asked.
    """

    def __init__(self, url: str, owner: str, max_queue: int) -> None:
        self.owner = owner
        self.max_queue = max_queue
        self._engine = open_database(url)

    def close(self) -> None:
        """Let go of the database."""
        self._engine.dispose()

    def add(self, job: Job, tenant: str, waited_for: bool = False, request_key: str | None = None) -> str:
        """Put a job into the queue, and return its name, or that of the one that this request made before.

        Raises:
            QueueFull: If too many jobs wait.
        """
        values: dict[str, Any] = {
            "tenant": tenant,
            "request_key": request_key,
            "waited_for": waited_for,
            "state": QUEUED,
        }
        values |= {"id": job.id, "created": time.time(), "batch_key": job.batch_key, "job": job.to_json()}
        # A caller can only be answered by the server that it called.
        values |= {"owner": self.owner if waited_for else None}
        same = (_JOBS.c.tenant == tenant, _JOBS.c.request_key == request_key)
        # Between looking, counting and adding nobody else may add.
        with _alone(self._engine) as connection:
            if request_key is not None and (known := connection.scalar(sql.select(_JOBS.c.id).where(*same))):
                return str(known)
            waiting = self._count(connection, QUEUED)
            if waiting >= self.max_queue:
                raise QueueFull(self._wait_s(connection, waiting))
            connection.execute(_JOBS.insert().values(values))
        return job.id

    def counts(self) -> dict[str, int]:
        """How many jobs wait and how many run."""
        with self._engine.begin() as connection:
            return {state: self._count(connection, state) for state in (QUEUED, RUNNING)}

    def get(self, job_id: str, tenant: str | None = None) -> Row | None:
        """A job; `None` if there is none of this name, or it is somebody else's."""
        if "\0" in job_id:
            # No job is called so, and PostgreSQL takes no text with it.
            return None
        wanted = _JOBS.c.id == job_id if tenant is None else sql.and_(_JOBS.c.id == job_id, _JOBS.c.tenant == tenant)
        with self._engine.begin() as connection:
            found = connection.execute(sql.select(*_COLUMNS).where(wanted)).first()
        return None if found is None else _row(found)

    def page(self, tenant: str, after: str | None, limit: int, newest_first: bool) -> list[Row]:
        """Jobs of a tenant that are no calls, in the order of time, from behind the job `after`."""
        wanted = [_JOBS.c.tenant == tenant, _JOBS.c.waited_for.is_(False)]
        place = sql.tuple_(_JOBS.c.created, _JOBS.c.id)
        if after is not None:
            last = self.get(after, tenant)
            if last is None:
                return []
            edge = sql.tuple_(sql.literal(last.created), sql.literal(last.id))
            wanted.append(place < edge if newest_first else place > edge)
        columns = [_JOBS.c.created, _JOBS.c.id]
        order = [column.desc() if newest_first else column.asc() for column in columns]
        with self._engine.begin() as connection:
            found = connection.execute(sql.select(*_COLUMNS).where(*wanted).order_by(*order).limit(limit)).all()
        return [_row(one) for one in found]

    def claim(self, most: int) -> list[Row]:
        """Take the oldest job that waits, and others that can be made by the same call, and mark them as running."""
        ours = sql.or_(_JOBS.c.waited_for.is_(False), _JOBS.c.owner == self.owner)
        oldest = sql.select(_JOBS.c.id, _JOBS.c.batch_key).where(_JOBS.c.state == QUEUED, ours)
        # What another server is taking is passed over, where the database can; SQLite lets one at a time write.
        oldest = oldest.order_by(_JOBS.c.created, _JOBS.c.id).with_for_update(skip_locked=True)
        claimed: list[str] = []
        with self._engine.begin() as connection:
            while not claimed and (first := connection.execute(oldest.limit(1)).first()) is not None:
                names = [first.id]
                if most > 1 and first.batch_key is not None:
                    same = oldest.where(_JOBS.c.batch_key == first.batch_key, _JOBS.c.id != first.id)
                    names += [one.id for one in connection.execute(same.limit(most - 1))]
                claimed = [name for name in names if self._taken(connection, name)]
            found = connection.execute(sql.select(*_COLUMNS).where(_JOBS.c.id.in_(claimed))).all()
        by_id = {one.id: _row(one) for one in found}
        return [by_id[name] for name in claimed]

    def _taken(self, connection: sql.Connection, job_id: str) -> bool:
        """Whether this server was the one that took a job."""
        values = {"state": RUNNING, "owner": self.owner, "lease": self._clock + LEASE_S, "started": time.time()}
        change = _JOBS.update().where(_JOBS.c.id == job_id, _JOBS.c.state == QUEUED)
        return connection.execute(change.values(**values, attempts=_JOBS.c.attempts + 1)).rowcount == 1

    def hold(self, jobs: Sequence[Row]) -> list[str]:
        """Say that jobs are still running here; return those that are no longer this server's."""
        kept = []
        with self._engine.begin() as connection:
            for row in jobs:
                change = _JOBS.update().where(*self._running_here(row)).values(lease=self._clock + LEASE_S)
                if connection.execute(change).rowcount == 1:
                    kept.append(row.id)
        return [row.id for row in jobs if row.id not in kept]

    def finish(
        self, row: Row, state: str, result: dict[str, Any] | None = None, error: dict[str, str] | None = None
    ) -> bool:
        """Note what came of a job that runs here; `False` if it is no longer this server's to say.

        A result may be noted again, by those who could not hear that it was.
        """
        values = {"state": state, "finished": time.time()}
        values |= {} if result is None else {"result": json.dumps(result)}
        values |= {"error": None if error is None else json.dumps(error)}
        with self._engine.begin() as connection:
            if connection.execute(_JOBS.update().where(*self._running_here(row)).values(values)).rowcount == 1:
                return True
            noted = sql.select(_JOBS.c.result).where(*self._of_this_attempt(row, DONE))
            return result is not None and connection.scalar(noted) == values["result"]

    def note_shots(self, row: Row, shots: int) -> None:
        """Note that more shots of a storyboard that runs here are finished."""
        result = json.dumps({"shots": shots, "attempts": row.attempts})
        with self._engine.begin() as connection:
            noted = connection.scalar(sql.select(_JOBS.c.result).where(_JOBS.c.id == row.id))
            if shots > json.loads(noted or "{}").get("shots", 0):
                connection.execute(_JOBS.update().where(*self._running_here(row)).values(result=result))

    def hand_back(self, row: Row, counts: bool) -> None:
        """Put a job that runs here back into the queue.

        Args:
            row: The job.
            counts: Whether this was an attempt, of which a job has three; a storyboard after each of its shots.
        """
        if counts and _in_vain(self.get(row.id) or row) >= MOST_ATTEMPTS:
            message = (
                f"the worker ended {row.attempts} times while it made this clip; it may be too large for the machine"
            )
            self.finish(row, FAILED, error={"code": "worker_died", "message": message})
            return
        values = {"state": QUEUED, "owner": self.owner if row.waited_for else None, "lease": None, "started": None}
        with self._engine.begin() as connection:
            change = _JOBS.update().where(*self._running_here(row))
            connection.execute(change.values(**values, attempts=row.attempts if counts else row.attempts - 1))

    def cancel(self, job_id: str) -> bool:
        """Cancel a job that waits or runs; `False` if it is finished already."""
        change = _JOBS.update().where(_JOBS.c.id == job_id, _JOBS.c.state.in_((QUEUED, RUNNING)))
        with self._engine.begin() as connection:
            return connection.execute(change.values(state=CANCELLED, finished=time.time())).rowcount == 1

    def remove(self, job_id: str) -> None:
        """Forget a job."""
        with self._engine.begin() as connection:
            connection.execute(_JOBS.delete().where(_JOBS.c.id == job_id))

    def recover(self, from_this: bool) -> list[str]:
        """Put jobs back whose server is gone: dead ones' by their leases, and this server's own after it was started anew.

        Calls whose caller is gone with the server are closed, since nobody could take their results; their names are
        returned.
        """
        gone = [sql.and_(_JOBS.c.state == RUNNING, _JOBS.c.lease < self._clock)]
        if from_this:
            gone.append(sql.and_(_JOBS.c.state == RUNNING, _JOBS.c.owner == self.owner))
        with self._engine.begin() as connection:
            found = connection.execute(sql.select(*_COLUMNS, _JOBS.c.owner).where(sql.or_(*gone))).all()
            closed = [one.id for one in found if one.waited_for]
            for one in found:
                values: dict[str, Any] = {"state": QUEUED, "owner": None, "lease": None, "started": None}
                if one.waited_for:
                    values = {"state": CANCELLED, "finished": time.time()}
                elif _in_vain(_row(one)) >= MOST_ATTEMPTS:
                    error = {
                        "code": "worker_died",
                        "message": f"the server ended {one.attempts} times while it made this clip",
                    }
                    values = {"state": FAILED, "finished": time.time(), "error": json.dumps(error)}
                same = (_JOBS.c.id == one.id, _JOBS.c.state == RUNNING, _JOBS.c.attempts == one.attempts)
                connection.execute(_JOBS.update().where(*same).values(values))
            if from_this:
                waiting = (_JOBS.c.state == QUEUED, _JOBS.c.waited_for.is_(True), _JOBS.c.owner == self.owner)
                closed += list(connection.scalars(sql.select(_JOBS.c.id).where(*waiting)))
                change = _JOBS.update().where(*waiting)
                connection.execute(change.values(state=CANCELLED, finished=time.time()))
        return closed

    def expired(self, before: float) -> list[str]:
        """Jobs that ended before a time."""
        wanted = sql.select(_JOBS.c.id).where(_JOBS.c.state.in_(FINISHED), _JOBS.c.finished < before)
        with self._engine.begin() as connection:
            return list(connection.scalars(wanted))

    @property
    def _clock(self) -> Any:
        """Seconds since 1970: by the clock of the database where servers on several machines share it."""
        if self._engine.dialect.name == "sqlite":
            return time.time()
        return sql.cast(sql.extract("epoch", sql.func.clock_timestamp()), sql.Double)

    def _running_here(self, row: Row) -> list[Any]:
        return self._of_this_attempt(row, RUNNING)

    def _of_this_attempt(self, row: Row, state: str) -> list[Any]:
        # A later attempt is another server's, or a later life of this one.
        same = (_JOBS.c.id == row.id, _JOBS.c.owner == self.owner, _JOBS.c.attempts == row.attempts)
        return [*same, _JOBS.c.state == state]

    def _count(self, connection: sql.Connection, state: str) -> int:
        wanted = sql.select(sql.func.count()).select_from(_JOBS).where(_JOBS.c.state == state)
        return int(connection.scalar(wanted) or 0)

    def _wait_s(self, connection: sql.Connection, waiting: int) -> int:
        """When the queue will have moved on, by how long the latest jobs took."""
        took = sql.select(_JOBS.c.finished - _JOBS.c.started).where(
            _JOBS.c.state == DONE, _JOBS.c.started.is_not(None)
        )
        latest = list(connection.scalars(took.order_by(_JOBS.c.finished.desc()).limit(10)))
        mean = sum(latest) / len(latest) if latest else 1.0
        return max(1, min(600, round(mean * max(1, waiting // 8))))


def _in_vain(row: Row) -> int:
    """Attempts in which nothing was finished, one after the other."""
    return row.attempts - (row.result or {}).get("attempts", 0)


def _row(found: Any) -> Row:
    values = {name: getattr(found, name) for name in Row.__annotations__}
    return Row(**values | {name: values[name] and json.loads(values[name]) for name in ("result", "error")})


def _set_up_sqlite(connection: Any, _record: Any) -> None:
    """Readers do not wait for a writer, writers wait for each other, and what is committed survives a kill."""
    for setting in ("journal_mode=WAL", "busy_timeout=30000", "synchronous=NORMAL"):
        connection.execute(f"PRAGMA {setting}")


def _set_up_postgresql(connection: Any, _record: Any) -> None:
    """No lock is waited for, and none kept by one who has stopped, without end."""
    for setting in ("lock_timeout", "idle_in_transaction_session_timeout"):
        connection.execute(f"SET {setting} = {_WAIT_MS}")
    connection.commit()
