"""A server that keeps Grafana's documented HTTP API for folders, dashboards, alert rules and contact points.

Written after the reference at grafana.com/docs/grafana/latest/developers/http_api and, for what it leaves open (status
codes of refused rules, provenance, what comes back beside what was sent), after Grafana's ``api_provisioning.go``.
"""

from __future__ import annotations

import copy
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlparse

TOKEN = "glsa_editor"  # noqa: S105  (a token of this fake)
VIEWER = "glsa_viewer"
Reply = tuple[int, Any]
Query = dict[str, list[str]]


@dataclass
class State:
    """All that this Grafana holds."""

    folders: dict[str, dict[str, Any]] = field(default_factory=dict)
    dashboards: dict[str, dict[str, Any]] = field(default_factory=dict)  # uid -> dashboard, folder, versions
    rules: dict[str, dict[str, Any]] = field(default_factory=dict)
    contacts: dict[str, dict[str, Any]] = field(default_factory=dict)
    sources: list[dict[str, Any]] = field(default_factory=list)
    versions_as_object: bool = True  # since Grafana 11
    writes: list[str] = field(default_factory=list)
    before_write: Callable[[], None] | None = None  # somebody else, at the same moment

    def save(self, content: dict[str, Any], folder: str, message: str) -> int:
        """Save a dashboard the way any client, or a person in the editor, does."""
        entry = self.dashboards.setdefault(content["uid"], {"versions": []})
        version = len(entry["versions"]) + 1
        # Grafana gives ids and migrates the schema: what comes back is never quite what was sent.
        entry["dashboard"] = content | {"id": 7, "version": version, "schemaVersion": 99}
        entry["folder"] = folder
        entry["versions"].append({"version": version, "message": message, "createdBy": "somebody"})
        return version


def refuse(code: int, text: str, **more: Any) -> Reply:
    return code, {"message": text, **more}


def folders_get(state: State, uid: str, query: Query, body: Any) -> Reply:
    del query, body
    return (200, state.folders[uid]) if uid in state.folders else refuse(404, "folder not found", status="not-found")


def folders_post(state: State, rest: str, query: Query, body: Any) -> Reply:
    del rest, query
    if not body.get("title"):
        return refuse(400, "folder title cannot be empty")
    if body["uid"] in state.folders:
        return refuse(409, "a folder with the same name already exists")
    state.folders[body["uid"]] = {"id": 1, "uid": body["uid"], "title": body["title"], "version": 1}
    return 200, state.folders[body["uid"]]


def dashboards_get(state: State, uid: str, query: Query, body: Any) -> Reply:
    del body
    uid, _, versions = uid.partition("/")
    entry = state.dashboards.get(uid)
    if entry is None:
        return refuse(404, "Dashboard not found")
    if versions:
        newest = list(reversed(entry["versions"]))[: int(query.get("limit", ["1000"])[0])]
        return 200, {"continueToken": "", "versions": newest} if state.versions_as_object else newest
    meta = {"folderUid": entry["folder"], "provisioned": entry.get("provisioned", False), "version": 1}
    return 200, {"dashboard": entry["dashboard"], "meta": meta}


def dashboards_post(state: State, rest: str, query: Query, body: Any) -> Reply:
    del rest, query
    content = body["dashboard"]
    if not content.get("title"):
        return refuse(400, "Dashboard title cannot be empty")
    if len(content["uid"]) > 40:
        return refuse(400, "uid too long, max 40 characters")
    if body.get("folderUid") not in state.folders:
        return refuse(400, "folder not found")
    entry = state.dashboards.get(content["uid"])
    if entry is not None and not body.get("overwrite"):
        if "version" not in content:
            return refuse(412, "A dashboard with the same uid already exists", status="name-exists")
        if content["version"] != entry["dashboard"]["version"]:
            return refuse(412, "The dashboard has been changed by someone else", status="version-mismatch")
    version = state.save(content, body["folderUid"], body.get("message", ""))
    return 200, {"id": 7, "uid": content["uid"], "status": "success", "version": version}


def dashboards_delete(state: State, uid: str, query: Query, body: Any) -> Reply:
    del query, body
    gone = state.dashboards.pop(uid, None)
    return (200, {"message": "Dashboard deleted"}) if gone else refuse(404, "Dashboard not found")


def search(state: State, rest: str, query: Query, body: Any) -> Reply:
    del rest, body
    tags, folders = set(query.get("tag", [])), set(query.get("folderUIDs", []))
    return 200, [
        {"uid": uid, "type": "dash-db", "folderUid": entry["folder"]}
        for uid, entry in state.dashboards.items()
        if tags <= set(entry["dashboard"].get("tags", [])) and (not folders or entry["folder"] in folders)
    ]


def sources(state: State, rest: str, query: Query, body: Any) -> Reply:
    del rest, query, body
    return 200, state.sources


def _check_rule(state: State, rule: dict[str, Any]) -> Reply | None:
    routing = rule.get("notification_settings")
    if rule.get("folderUID") not in state.folders:
        return refuse(400, "invalid alert rule: folder does not exist")
    if not rule.get("title") or not rule.get("data") or not rule.get("ruleGroup"):
        return refuse(400, "invalid alert rule: title, data and ruleGroup are required")
    if rule["condition"] not in {query["refId"] for query in rule["data"]}:
        return refuse(400, "invalid alert rule: condition does not exist, must be one of the queries")
    if routing and routing["receiver"] not in {point["name"] for point in state.contacts.values()}:
        return refuse(400, f"invalid notification settings: receiver {routing['receiver']!r} does not exist")
    if routing and not {"alertname", "grafana_folder"} <= set(routing.get("group_by", ["alertname", "grafana_folder"])):
        return refuse(400, "group by override must contain the required labels")
    return None


def _stored(rule: dict[str, Any], provenance: str) -> dict[str, Any]:
    kept = copy.deepcopy(rule)
    for query in kept["data"]:
        query["model"] = {"intervalMs": 1000, "maxDataPoints": 43200} | query["model"]
    kept["for"] = f"{kept['for']}0s" if kept["for"].endswith("m") else kept["for"]
    return kept | {"id": 3, "updated": "2026-01-01T00:00:00Z", "provenance": provenance, "keep_firing_for": "0s"}


def rules_get(state: State, uid: str, query: Query, body: Any) -> Reply:
    del query, body
    if not uid:
        return 200, list(state.rules.values())
    return (200, state.rules[uid]) if uid in state.rules else (404, None)


def rules_post(state: State, rest: str, query: Query, body: Any) -> Reply:
    del rest, query
    if body["uid"] in state.rules:
        return refuse(409, "conflicting alert rule found: rule uid must be unique")
    if fault := _check_rule(state, body):
        return fault
    state.rules[body["uid"]] = _stored(body, "api")
    return 201, state.rules[body["uid"]]


def rules_put(state: State, uid: str, query: Query, body: Any) -> Reply:
    del query
    if uid not in state.rules:
        return 404, None
    if state.rules[uid]["provenance"] == "file":
        return refuse(409, "cannot change provenance from 'file' to 'api'")
    if fault := _check_rule(state, body):
        return fault
    state.rules[uid] = _stored(body, "api")
    return 200, state.rules[uid]


def rules_delete(state: State, uid: str, query: Query, body: Any) -> Reply:
    del query, body
    state.rules.pop(uid, None)
    return 204, None


def contacts_get(state: State, rest: str, query: Query, body: Any) -> Reply:
    del rest, body
    names = query.get("name")
    return 200, [point for point in state.contacts.values() if names is None or point["name"] in names]


def contacts_write(state: State, uid: str, query: Query, body: Any) -> Reply:
    del query
    if uid and uid not in state.contacts:
        return refuse(404, "contact point not found")
    if not body["settings"].get("url"):
        return refuse(400, "invalid object specification: required field 'url' is not specified")
    state.contacts[body["uid"]] = body | {"provenance": "api"}
    return 202, {"message": "contactpoint updated"} if uid else body


ROUTES: list[tuple[str, str, Callable[[State, str, Query, Any], Reply]]] = [
    ("GET", r"/api/folders/([\w-]+)", folders_get),
    ("POST", r"/api/folders()", folders_post),
    ("GET", r"/api/datasources()", sources),
    ("GET", r"/api/search()", search),
    ("GET", r"/api/dashboards/uid/([\w-]+(?:/versions)?)", dashboards_get),
    ("POST", r"/api/dashboards/db()", dashboards_post),
    ("DELETE", r"/api/dashboards/uid/([\w-]+)", dashboards_delete),
    ("GET", r"/api/v1/provisioning/alert-rules/?([\w-]*)", rules_get),
    ("POST", r"/api/v1/provisioning/alert-rules()", rules_post),
    ("PUT", r"/api/v1/provisioning/alert-rules/([\w-]+)", rules_put),
    ("DELETE", r"/api/v1/provisioning/alert-rules/([\w-]+)", rules_delete),
    ("GET", r"/api/v1/provisioning/contact-points()", contacts_get),
    ("POST", r"/api/v1/provisioning/contact-points()", contacts_write),
    ("PUT", r"/api/v1/provisioning/contact-points/([\w-]+)", contacts_write),
]


def answer(state: State, method: str, target: str, token: str, body: Any) -> Reply:
    """Return status and body for one request."""
    address = urlparse(target)
    if token not in {TOKEN, VIEWER}:
        return refuse(401, "Invalid API key")
    for verb, pattern, handler in ROUTES:
        match = re.fullmatch(pattern, address.path)
        if match and verb == method:
            if token == VIEWER and method != "GET":
                return refuse(403, "You'll need additional permissions to perform this action.")
            if method != "GET":
                state.writes.append(f"{method} {address.path}")
                if state.before_write is not None:
                    state.before_write()
            return handler(state, match[1], parse_qs(address.query), body)
    return refuse(404, "Not found")


@contextmanager
def running(state: State) -> Iterator[str]:
    """Serve ``state`` on a free port and give its base URL."""

    class Handler(BaseHTTPRequestHandler):
        def handle_any(self) -> None:
            length = int(self.headers.get("Content-Length", 0))
            body = json.loads(self.rfile.read(length)) if length else None
            token = self.headers.get("Authorization", "").removeprefix("Bearer ")
            status, content = answer(state, self.command, self.path, token, body)
            raw = b"" if content is None else json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        do_GET = do_POST = do_PUT = do_DELETE = handle_any  # noqa: N815  (the names that http.server calls)

        def log_message(self, *arguments: object) -> None:
            del arguments

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
