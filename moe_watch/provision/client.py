"""Grafana's HTTP API, as far as provisioning needs it: folders, dashboards, alert rules, contact points.

After https://grafana.com/docs/grafana/latest/developers/http_api/ (folder, dashboard, dashboard_versions,
folder_dashboard_search, data_source, alerting_provisioning). Errors become ``GrafanaError`` with what to do; the token
appears in none of them.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Any, Final

import httpx
from pydantic import SecretStr

from moe_watch.servers.urls import bearer, shown

_ADVICE: Final[dict[int, str]] = {
    HTTPStatus.UNAUTHORIZED: "Grafana does not know this token: make a service account token and set "
    "MOE_WATCH_GRAFANA__TOKEN to it",
    HTTPStatus.FORBIDDEN: "the token may not do this: the service account needs the role Editor, and Admin for contact "
    "points",
    HTTPStatus.PRECONDITION_FAILED: "somebody saved it at the same moment: run the command again",
}
_ANY: Final = object()


class GrafanaError(Exception):
    """A request that Grafana refused or that never reached it; the text says what to do."""


class Grafana:
    """One Grafana organisation, seen through ``http`` (its base URL and headers are set)."""

    def __init__(self, http: httpx.Client) -> None:
        self._http = http

    def folder(self, uid: str) -> dict[str, Any] | None:
        """Return a folder, None when there is none."""
        found: dict[str, Any] | None = self._get(f"/api/folders/{uid}")
        return found

    def create_folder(self, uid: str, title: str) -> None:
        """Make a folder."""
        self._send("POST", "/api/folders", {"uid": uid, "title": title})

    def prometheus_sources(self) -> list[dict[str, Any]]:
        """Return the data sources that are a Prometheus."""
        return [source for source in self._get("/api/datasources") or [] if source["type"] == "prometheus"]

    def dashboard(self, uid: str) -> dict[str, Any] | None:
        """Return ``{"dashboard": ..., "meta": ...}``, None when there is none."""
        found: dict[str, Any] | None = self._get(f"/api/dashboards/uid/{uid}")
        return found

    def messages(self, uid: str) -> list[str]:
        """Return the messages of a dashboard's last versions (at most 100), newest first."""
        found = self._get(f"/api/dashboards/uid/{uid}/versions", limit=100)
        # A plain list until Grafana 11, an object with a continuation token since.
        versions = found["versions"] if isinstance(found, dict) else found
        newest_first = sorted(versions or [], key=lambda version: -int(version["version"]))
        return [str(version.get("message", "")) for version in newest_first]

    def save_dashboard(self, content: dict[str, Any], folder: str, message: str, version: int | None) -> None:
        """Save a dashboard over ``version``, None for a new one; GrafanaError when another version is there by now."""
        body = {"dashboard": content | {"id": None}, "folderUid": folder, "message": message, "overwrite": False}
        if version is not None:
            body["dashboard"] = content | {"version": version}
        self._send("POST", "/api/dashboards/db", body)

    def delete_dashboard(self, uid: str) -> None:
        """Delete a dashboard."""
        self._send("DELETE", f"/api/dashboards/uid/{uid}")

    def dashboards_tagged(self, tag: str, folder: str) -> list[str]:
        """Return the uids of the dashboards with ``tag`` in a folder."""
        found = self._get("/api/search", type="dash-db", tag=tag, folderUIDs=folder, limit=5000)
        return [hit["uid"] for hit in found or []]

    def rules(self) -> list[dict[str, Any]]:
        """Return every Grafana-managed alert rule of the organisation."""
        found: list[dict[str, Any]] = self._get("/api/v1/provisioning/alert-rules") or []
        return found

    def create_rule(self, rule: dict[str, Any]) -> None:
        """Make an alert rule with the uid that it has."""
        self._send("POST", "/api/v1/provisioning/alert-rules", rule)

    def update_rule(self, rule: dict[str, Any]) -> None:
        """Replace the alert rule of the same uid."""
        self._send("PUT", f"/api/v1/provisioning/alert-rules/{rule['uid']}", rule)

    def delete_rule(self, uid: str) -> None:
        """Delete an alert rule."""
        self._send("DELETE", f"/api/v1/provisioning/alert-rules/{uid}")

    def contact_point(self, name: str, uid: str) -> dict[str, Any] | None:
        """Return a contact point, None when there is none; Grafana may redact its settings."""
        found = self._get("/api/v1/provisioning/contact-points", name=name) or []
        return next((point for point in found if point.get("uid") == uid), None)

    def create_contact_point(self, point: dict[str, Any]) -> None:
        """Make a contact point."""
        self._send("POST", "/api/v1/provisioning/contact-points", point)

    def update_contact_point(self, point: dict[str, Any]) -> None:
        """Replace the contact point of the same uid."""
        self._send("PUT", f"/api/v1/provisioning/contact-points/{point['uid']}", point)

    def _get(self, path: str, **query: Any) -> Any:
        response = self._request("GET", path, params=query)
        if response.status_code == HTTPStatus.NOT_FOUND:
            return None
        return self._json(response, f"GET {path}")

    def _send(self, method: str, path: str, body: Any = _ANY) -> None:
        response = self._request(method, path) if body is _ANY else self._request(method, path, json=body)
        if not response.is_success:
            raise _refused(response, f"{method} {path}")

    def _request(self, method: str, path: str, **rest: Any) -> httpx.Response:
        try:
            return self._http.request(method, path, **rest)
        except httpx.HTTPError as error:
            base = shown(str(self._http.base_url))
            raise GrafanaError(f"no answer from Grafana at {base}: {type(error).__name__}; is the URL right?") from None

    @staticmethod
    def _json(response: httpx.Response, what: str) -> Any:
        if not response.is_success:
            raise _refused(response, what)
        try:
            return response.json()
        except ValueError:
            raise GrafanaError(f"{what} did not answer JSON: is this the address of a Grafana?") from None


def connect(url: str, token: SecretStr) -> Grafana:
    """Return the Grafana at ``url`` with a service account token."""
    headers = {**bearer(token), "Accept": "application/json"}
    return Grafana(httpx.Client(base_url=url.rstrip("/"), headers=headers, timeout=30.0))


def _refused(response: httpx.Response, what: str) -> GrafanaError:
    """Return the error of a response: Grafana's own words, and what to do where that is known."""
    try:
        said = str(response.json().get("message", ""))
    except (ValueError, AttributeError):
        said = ""
    parts = [f"{what} answered {response.status_code}", said, _ADVICE.get(response.status_code, "")]
    return GrafanaError("; ".join(part for part in parts if part))
