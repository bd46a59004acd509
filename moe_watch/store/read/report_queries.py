"""What the report and ``explain`` read: windows for totals, rows of single requests only for the few that are shown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

from sqlalchemy import Connection, Row, and_, func, literal_column, select, union_all

from moe_watch.store.schema import Fingerprint, Model, Request, Sample, Shadow, Window

AnyRow = Row[Any]
_AT_ONCE: Final = 64  # windows in memory at a time: each may hold 100 KB of arrays
SUSPICIOUS_P: Final = 0.05  # what the index ix_requests_suspicious covers


def models_between(connection: Connection, since: float, until: float, name: str | None = None) -> list[AnyRow]:
    """Return the rows of ``models`` with windows in the period, the busiest first."""
    busy = (
        select(Window.model_id, func.sum(Window.requests).label("requests"))
        .where(_within(Window.start, since, until))
        .group_by(Window.model_id)
        .subquery()
    )
    query = select(*Model.__table__.c).join(busy, busy.c.model_id == Model.id)
    query = query if name is None else query.where(Model.name == name)
    return _all(connection, query.order_by(busy.c.requests.desc(), Model.id))


def latest_windows(connection: Connection) -> dict[str, float]:
    """Return when the last window of each model begins, by the model's name, the latest first."""
    latest = func.max(Window.start)
    query = select(Model.name, latest).join(Window).group_by(Model.name).order_by(latest.desc())
    return {str(name): float(at) for name, at in connection.execute(query)}


def extent(connection: Connection, model_id: int, since: float, until: float) -> tuple[int, float]:
    """Return the number of requests in the windows of the period, and the length of the longest window, seconds."""
    sums = (func.coalesce(func.sum(Window.requests), 0), func.coalesce(func.max(Window.seconds), 0.0))
    requests, longest = connection.execute(_windows(sums, model_id, since, until)).one()
    return int(requests), float(longest)


def windows(connection: Connection, model_id: int, since: float, until: float) -> Iterator[AnyRow]:
    """Yield windows in order of time without their arrays."""
    columns = (Window.replica, Window.start, Window.seconds, Window.requests, Window.routed_requests, Window.scalars)
    yield from _stream(connection, _windows(columns, model_id, since, until).order_by(Window.start))


def routed_windows(connection: Connection, model_id: int, since: float, until: float) -> list[int]:
    """Return the keys of the windows with routing, in order of time."""
    query = _windows((Window.id,), model_id, since, until).where(Window.routed_requests > 0)
    return [row[0] for row in _all(connection, query.order_by(Window.start, Window.id))]


def window_arrays(connection: Connection, keys: Sequence[int]) -> Iterator[AnyRow]:
    """Yield (routed_requests, counts, moments), the latter two as packed bytes, of the windows with these keys."""
    columns = (Window.routed_requests, Window.counts, Window.moments)
    for start in range(0, len(keys), _AT_ONCE):
        yield from _all(connection, select(*columns).where(Window.id.in_(keys[start : start + _AT_ONCE])))


def suspicious(connection: Connection, model_id: int, since: float, until: float, limit: int) -> list[AnyRow]:
    """Return the requests with the smallest p-values of at most ``SUSPICIOUS_P``; canaries are left out.

    The bound is written into the statement: a partial index is not used for a parameter.
    """
    query = (
        select(*Request.__table__.c)
        .where(Request.model_id == model_id, literal_column("ood_p") <= literal_column(str(SUSPICIOUS_P)))
        .where(_within(Request.finished_at, since, until), Request.canary.is_(False))
        .order_by(Request.ood_p, Request.ood_score.desc())
        .limit(limit)
    )
    return _all(connection, query)


def requests_like(connection: Connection, part: str, limit: int = 5) -> list[str]:
    """Return ids of requests that begin with ``part``, the latest first: what a typing error may have meant."""
    query = select(Request.request_id).where(Request.request_id.startswith(part, autoescape=True))
    return [row[0] for row in _all(connection, query.order_by(Request.id.desc()).limit(limit))]


def neighbours(connection: Connection, model_id: int, at: float, each_side: int) -> list[AnyRow]:
    """Return the requests that finished next before and after ``at``, the one at ``at`` included, in order of time."""
    mine = select(*Request.__table__.c).where(Request.model_id == model_id)
    before = mine.where(Request.finished_at <= at).order_by(Request.finished_at.desc()).limit(each_side + 1)
    after = mine.where(Request.finished_at > at).order_by(Request.finished_at).limit(each_side)
    both = union_all(select(before.subquery()), select(after.subquery())).subquery()
    return _all(connection, select(both).order_by(both.c.finished_at))


def fingerprints(connection: Connection, keys: Sequence[int]) -> dict[int, AnyRow]:
    """Return the fingerprints that were kept, by the key of their request."""
    query = select(*Fingerprint.__table__.c).where(Fingerprint.request_pk.in_(keys))
    return {row.request_pk: row for row in _all(connection, query)}


def samples(connection: Connection, keys: Sequence[int], now: float) -> dict[int, AnyRow]:
    """Return the sampled texts that have not expired, by the key of their request."""
    query = select(*Sample.__table__.c).where(Sample.request_pk.in_(keys), Sample.expires_at > now)
    return {row.request_pk: row for row in _all(connection, query)}


def shadow(connection: Connection, key: int) -> AnyRow | None:
    """Return what the dense model said of one request."""
    return next(iter(_all(connection, select(*Shadow.__table__.c).where(Shadow.request_pk == key))), None)


def sample_count(connection: Connection, model_id: int, since: float, until: float) -> int:
    """Return how many requests of the period have sampled text."""
    query = select(func.count()).select_from(Sample).join(Request, Request.id == Sample.request_pk)
    query = query.where(Request.model_id == model_id, _within(Request.finished_at, since, until))
    return int(connection.execute(query).scalar_one())


def dense_models(connection: Connection, model_id: int, since: float, until: float) -> list[str]:
    """Return the dense models that replayed requests of the period, the busiest first."""
    query = select(Shadow.dense_model).join(Request, Request.id == Shadow.request_pk).group_by(Shadow.dense_model)
    query = query.where(Request.model_id == model_id, _within(Shadow.at, since, until), Shadow.dense_model != "")
    return [row[0] for row in _all(connection, query.order_by(func.count().desc()))]


def oldest_request(connection: Connection, model_id: int) -> float | None:
    """Return when the oldest request that still has a row finished."""
    query = select(func.min(Request.finished_at)).where(Request.model_id == model_id)
    return connection.execute(query).scalar_one()


def _windows(columns: Sequence[Any], model_id: int, since: float, until: float) -> Any:
    return select(*columns).where(Window.model_id == model_id, _within(Window.start, since, until))


def _within(column: Any, since: float, until: float) -> Any:
    return and_(column >= since, column < until)


def _all(connection: Connection, query: Any) -> list[AnyRow]:
    return list(connection.execute(query))


def _stream(connection: Connection, query: Any) -> Iterator[AnyRow]:
    yield from connection.execution_options(yield_per=_AT_ONCE).execute(query)
