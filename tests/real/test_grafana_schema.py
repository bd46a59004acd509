"""The dashboards against the TypeScript types that Grafana publishes: a real compiler reads the real schema."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from moe_watch.provision import assets
from tests.support.grafana_view import panels

pytestmark = [pytest.mark.real, pytest.mark.skipif(shutil.which("npm") is None, reason="npm is not installed")]
PACKAGES = ("@grafana/schema@13.2.3", "typescript@7.0.2")
RAW = "@grafana/schema/dist/esm/raw/composable"
TYPES = {
    "timeseries": "timeseries/panelcfg/x/TimeSeriesPanelCfg_types.gen",
    "stat": "stat/panelcfg/x/StatPanelCfg_types.gen",
    "state-timeline": "statetimeline/panelcfg/x/StateTimelinePanelCfg_types.gen",
    "status-history": "statushistory/panelcfg/x/StatusHistoryPanelCfg_types.gen",
    "bargauge": "bargauge/panelcfg/x/BarGaugePanelCfg_types.gen",
    "table": "table/panelcfg/x/TablePanelCfg_types.gen",
    "text": "text/panelcfg/x/TextPanelCfg_types.gen",
}
# JSON has strings where TypeScript has enums, and may leave out what has a default.
HEADER = """
import type { Dashboard, VariableModel, AnnotationQuery } from '@grafana/schema';
type Json<T> = T extends string ? `${T}` : T extends (infer U)[] ? Json<U>[]
  : T extends object ? { [K in keyof T]: Json<T[K]> } : T;
// What the core's schema leaves to others: fields of interval and query variables, an annotation's query.
type More = { auto: boolean; auto_min: string; auto_count: number; definition?: string };
type Variables = { list?: (Json<VariableModel> & More)[] };
type Annotations = { list?: (Omit<Json<AnnotationQuery>, 'target'> & { target: object; [more: string]: unknown })[] };
// The SDK still writes a footer's defaults that the tables of Grafana 13 ignore.
type Table = { footer?: unknown };
type Page = Omit<Json<Dashboard>, 'templating' | 'annotations'> & { templating: Variables; annotations: Annotations };
"""


def typescript(content: dict[str, Any]) -> str:
    """Return a module that compiles only where the dashboard and its panels' options are of Grafana's types."""
    kinds = sorted({panel["type"] for panel in panels(content)})
    lines = [HEADER, *(f"import type * as {name(kind)} from '{RAW}/{TYPES[kind]}';" for kind in kinds)]
    lines.append(f"export const page: Partial<Page> = {json.dumps(content)};")
    for panel in panels(content):
        kind = name(panel["type"])
        custom = panel.get("fieldConfig", {}).get("defaults", {}).get("custom")
        for part, value in (("Options", panel["options"]), ("FieldConfig", custom)):
            if not value:
                continue
            of = f"Json<Partial<{kind}.{part}>>" + (" & Table" if kind == "table" else "")
            lines.append(f"export const p{panel['id']}{part}: {of} = {json.dumps(value)};")
    return "\n".join(lines)


def name(kind: str) -> str:
    return kind.replace("-", "_")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the compiler and the schema from the npm registry; skip where there is none."""
    folder = tmp_path_factory.mktemp("schema")
    (folder / "package.json").write_text('{"private": true}')
    command = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", *PACKAGES]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=120)
    if done.returncode != 0:
        pytest.skip(f"the npm registry is out of reach: {done.stderr[-200:]}")
    options = {"strict": True, "noEmit": True, "module": "esnext", "moduleResolution": "bundler", "skipLibCheck": True}
    (folder / "tsconfig.json").write_text(json.dumps({"compilerOptions": options, "include": ["*.ts"]}))
    return folder


def compile_in(project: Path, text: str) -> str:
    for old in project.glob("*.ts"):
        old.unlink()
    (project / "page.ts").write_text(text)
    done = subprocess.run(["npx", "tsc", "-p", "."], cwd=project, capture_output=True, text=True, check=False)
    return done.stdout


@pytest.mark.parametrize("uid", assets.dashboards())
def test_a_dashboard_is_of_grafanas_types(project: Path, uid: str) -> None:
    """Neither the page nor any panel's options have an unknown field or a value of another type."""
    assert compile_in(project, typescript(assets.dashboards()[uid])) == ""


def test_a_field_that_grafana_does_not_know_is_found(project: Path) -> None:
    """The compiler is not blind: a misspelt option and a wrong value fail."""
    content = json.loads(json.dumps(assets.dashboards()["moe-watch-overview"]))
    stat = panels(content)[0]
    stat["options"]["graphMood"] = "area"
    assert "graphMood" in compile_in(project, typescript(content))
    del stat["options"]["graphMood"]
    stat["options"]["graphMode"] = "bar"
    assert '"bar"' in compile_in(project, typescript(content))
