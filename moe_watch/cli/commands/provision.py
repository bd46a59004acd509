"""``moe-watch provision``: dashboards and alerts as files, as Kubernetes objects, or pushed to a Grafana."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click
from pydantic import SecretStr

from moe_watch.cli import setup, terminal
from moe_watch.domain.amounts import plural
from moe_watch.provision import assets, files, grafana_rules, kubernetes, push
from moe_watch.provision.alert import DEFAULT_GRAFANA, Links
from moe_watch.provision.client import Grafana, GrafanaError, connect
from moe_watch.settings import GrafanaSettings

_SIGNS = {"create": "+", "update": "~", "delete": "-", "kept": "!", "unchanged": "="}


def _pairs(context: click.Context, parameter: click.Parameter, given: tuple[str, ...]) -> dict[str, str]:
    """Read ``NAME=VALUE`` options."""
    del context
    bad = [text for text in given if "=" not in text]
    if bad:
        raise click.BadParameter(f"{bad[0]!r} is not NAME=VALUE", param=parameter)
    return dict(text.split("=", 1) for text in given)


@click.command("provision")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="Folder to write files to.")
@click.option("--format", "form", type=click.Choice(["files", "kubernetes"]), default="files", show_default=True)
@click.option(
    "--grafana",
    "url",
    type=setup.ADDRESS,
    help="Base URL of a Grafana to push to.",
)
@click.option(
    "--token", help="Its service account token; prefer MOE_WATCH_GRAFANA__TOKEN, which no process list shows."
)
@click.option("--dry-run", is_flag=True, help="Show the changes to Grafana without making them.")
@click.option("--force", is_flag=True, help="Also overwrite objects that a person changed in Grafana.")
@click.option("--prune", is_flag=True, help="Delete objects that an earlier version pushed and this one no longer has.")
@click.option("--datasource", help="Uid of Grafana's Prometheus data source; needed if there are several.")
@click.option(
    "--grafana-url", help=f"Grafana's address in the links of alerts.  [default: --grafana or {DEFAULT_GRAFANA}]"
)
@click.option("--runbooks-url", help="Where runbooks/*.md are served.  [default: the Runbooks dashboard in Grafana]")
@click.option("--page-url", help="Webhook for critical alerts.")
@click.option("--ticket-url", help="Webhook for warnings.  [default: --page-url]")
@click.option("--sidecar", multiple=True, help="HOST:PORT of a moe-watch to scrape; repeatable.")
@click.option("--vllm", multiple=True, callback=_pairs, help="REPLICA=HOST:PORT of a vLLM to scrape; repeatable.")
@click.option("--selector", multiple=True, callback=_pairs, help="LABEL=VALUE of the pods to scrape; repeatable.")
@click.option(
    "--alerting",
    type=click.Choice(["prometheus", "grafana"]),
    help="Which system alerts, so that no alert is sent twice.  [default: prometheus for files, grafana for a push]",
)
def command(out: Path | None, form: str, url: str | None, *, token: str | None, **options: Any) -> None:
    """Provision dashboards and alerts: write them with --out, push them with --grafana, or both."""
    if out is None and url is None:
        raise click.UsageError("say where to: --out DIR, --grafana URL, or both")
    links = Links(options["grafana_url"] or url or DEFAULT_GRAFANA, options["runbooks_url"])
    if out is not None:
        _write(
            out,
            kubernetes.layout(links, options["selector"] or kubernetes.DEFAULT_SELECTOR)
            if form == "kubernetes"
            else files.layout(_site(links, options)),
        )
    if url is not None:
        _push(connect(url, _token(token, setup.settings().grafana)), links, options)


def _site(links: Links, options: dict[str, Any]) -> files.Site:
    given = {name: options[name] for name in ("page_url", "ticket_url", "alerting") if options[name]}
    given |= {"sidecars": options["sidecar"]} if options["sidecar"] else {}
    given |= {"vllm": options["vllm"]} if options["vllm"] else {}
    if "page_url" not in given:
        terminal.line("No --page-url: the receivers are examples that page nobody.", err=True)
    return files.Site(links=links, **given)


def _write(out: Path, texts: dict[str, str]) -> None:
    try:
        for name, text in texts.items():
            path = out / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise click.ClickException(f"cannot write to {out}: {error.strerror}") from error
    terminal.line(f"{plural(len(texts), 'file')} in {out}")


def _token(flag: str | None, settings: GrafanaSettings) -> SecretStr:
    token = SecretStr(flag) if flag else settings.token
    if not token:
        raise click.ClickException("no token for Grafana: set MOE_WATCH_GRAFANA__TOKEN or pass --token")
    return token


def _push(grafana: Grafana, links: Links, options: dict[str, Any]) -> None:
    try:
        wanted = _wanted(grafana, links, options)
        changes = push.plan(grafana, wanted, force=options["force"], prune=options["prune"])
        _show(changes if options["dry_run"] else push.apply(changes), diffs=options["dry_run"])
    except GrafanaError as error:
        raise click.ClickException(str(error)) from error
    if any(change.action == "kept" for change in changes):
        terminal.line("What is marked ! was left as it is; --force overwrites it.")
    if options["dry_run"]:
        terminal.line("Nothing was changed (--dry-run).")


def _wanted(grafana: Grafana, links: Links, options: dict[str, Any]) -> push.Wanted:
    contact = files.contact_point(options["page_url"]) if options["page_url"] else None
    source = options["datasource"] or _only_source(grafana)
    groups = grafana_rules.groups(links, source, contact=contact is not None)
    paused = options["alerting"] == "prometheus"
    rules = [rule | {"isPaused": paused} for group in groups for rule in group["rules"]]
    return push.Wanted(assets.dashboards(), rules, contact)


def _only_source(grafana: Grafana) -> str:
    """Return the uid of Grafana's one Prometheus; the default one where there are several."""
    sources = grafana.prometheus_sources()
    best = [source for source in sources if source.get("isDefault")] or sources
    if len(best) != 1:
        names = ", ".join(f"{source['uid']} ({source['name']})" for source in best) or "none"
        raise click.ClickException(f"which Prometheus should the alert rules ask? Pass --datasource; there: {names}")
    return str(best[0]["uid"])


def _show(changes: Iterable[push.Change], *, diffs: bool) -> None:
    for change in changes:
        why = f" ({change.why})" if change.why else ""
        terminal.line(f"{_SIGNS[change.action]} {change.kind} {change.name}: {change.action}{why}")
        if diffs and change.diff:
            terminal.block(change.diff)
