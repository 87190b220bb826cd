"""What deploys Threadkeep fits the platforms and the project: databricks.yml, app.yaml, Dockerfile.

There is neither a workspace nor a container engine here. So the files are held against the typed
objects of the Databricks SDK, the settings, pyproject.toml, and what their documentation says.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import yaml
from databricks.sdk.service.apps import App, AppDeployment, AppResource

from tests.conftest import RunningApp
from threadkeep.errors import SettingsError
from threadkeep.server.identity import check_exposure
from threadkeep.settings import DatabaseSettings, Settings

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SETTINGS = {field.alias for field in Settings.model_fields.values()}
DOCKERFILE = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")


def text_of(name: str, *, with_choices: bool) -> str:
    """A file as it is, or with the choices that it has in comments."""
    text = (ROOT / name).read_text()
    return (
        re.sub(r"^( +)# (?=- | +\w+:)", r"\1", text, flags=re.MULTILINE) if with_choices else text
    )


def bundle(*, with_choices: bool = False) -> dict[str, Any]:
    read: dict[str, Any] = yaml.safe_load(text_of("databricks.yml", with_choices=with_choices))
    return read


def app_yaml(*, with_choices: bool = False) -> dict[str, Any]:
    read: dict[str, Any] = yaml.safe_load(text_of("app.yaml", with_choices=with_choices))
    return read


def resources(*, with_choices: bool) -> dict[str, dict[str, Any]]:
    """The resources of the app, by name."""
    app = bundle(with_choices=with_choices)["resources"]["apps"]["threadkeep"]
    return {resource["name"]: resource for resource in app["resources"]}


def test_the_bundle_has_a_target_to_develop_and_one_to_serve() -> None:
    """The first is the default; the second has the path that the CLI insists on."""
    targets = bundle()["targets"]
    assert targets["dev"] == {"mode": "development", "default": True}
    assert targets["prod"].keys() == {"mode", "workspace"}
    assert targets["prod"]["mode"] == "production"
    assert targets["prod"]["workspace"]["root_path"].endswith("/${bundle.name}/${bundle.target}")


def test_the_bundle_holds_what_bundles_may_hold() -> None:
    """It uses no variable that it does not declare, and no name that apps can't have."""
    read = bundle()
    assert read.keys() == {"bundle", "variables", "sync", "resources", "targets"}
    used = set(re.findall(r"\$\{var\.(\w+)\}", text_of("databricks.yml", with_choices=True)))
    assert used == read["variables"].keys()
    (app,) = read["resources"]["apps"].values()
    assert app.keys() - {"source_code_path"} <= App.__dataclass_fields__.keys()
    assert (ROOT / app["source_code_path"] / "app.yaml").exists()
    for target in read["targets"]:
        name = app["name"].replace("${bundle.target}", target)
        assert re.fullmatch(r"[a-z0-9-]{2,30}", name)


def test_the_bundle_uploads_no_secrets_and_no_lock() -> None:
    """With a lock the platform would install the embedded model."""
    excluded = bundle()["sync"]["exclude"]
    for name in (".env", "threadkeep.db", "threadkeep.db-wal", "uv.lock", "tests/test_sql.py"):
        assert any(fnmatch(name, pattern) for pattern in excluded), name


@pytest.mark.parametrize("with_choices", [False, True])
def test_the_resources_are_what_apps_take(with_choices: bool) -> None:
    """The SDK's objects keep all of them; what they don't know they drop."""
    found = resources(with_choices=with_choices)
    assert found.keys() == ({"database", "postgres", "model"} if with_choices else {"database"})
    for resource in found.values():
        assert AppResource.from_dict(resource).as_dict() == resource
        assert len(resource) == 2
    database = found["database"]["database"]
    assert database["database_name"] == DatabaseSettings.model_fields["pgdatabase"].default
    assert database["permission"] == "CAN_CONNECT_AND_CREATE"


@pytest.mark.parametrize("with_choices", [False, True])
def test_the_app_is_given_settings_of_ours(with_choices: bool) -> None:
    """Each has a value, or one from a resource that the bundle names."""
    read = app_yaml(with_choices=with_choices)
    assert read.keys() == {"command", "env"}
    names = [variable["name"] for variable in read["env"]]
    assert len(set(names)) == len(names)
    assert set(names) <= SETTINGS
    for variable in read["env"]:
        assert len(variable) == 2
        if "valueFrom" in variable:
            assert variable["valueFrom"] in resources(with_choices=with_choices)
        else:
            assert isinstance(variable["value"], str)
    # The API has the same two fields, in its own spelling.
    env = [{k.replace("valueFrom", "value_from"): v for k, v in e.items()} for e in read["env"]]
    deployment = {"command": read["command"], "env_vars": env}
    assert AppDeployment.from_dict(deployment).as_dict() == deployment


def test_the_app_starts_with_what_it_is_given() -> None:
    """What the platform adds included; a resource of a provisioned Lakebase gives its hostname."""
    given = {v["name"]: v.get("value", "instance.database.x.com") for v in app_yaml()["env"]}
    platform = {
        "DATABRICKS_APP_NAME": "threadkeep-prod",
        "DATABRICKS_APP_PORT": "8000",
        "DATABRICKS_HOST": "x.com",
        "PGHOST": "instance.database.x.com",
        "PGUSER": "00000000-0000-0000-0000-000000000000",
        "PGPORT": "5432",
        "PGDATABASE": "databricks_postgres",
    }
    settings = Settings.read(given | platform)
    assert settings.uses_lakebase
    assert settings.agent_model == "databricks/databricks-gpt-5-2"
    check_exposure(settings)


def uses_uv(words: list[str]) -> None:
    """A call of uv: without the embedded model, with the SDK of Databricks, both known here."""
    assert words[0] == "uv"
    assert "--no-default-groups" in words
    assert words[words.index("--extra") + 1] == "databricks"
    assert "databricks" in PROJECT["project"]["optional-dependencies"]


def test_the_command_of_the_app_is_ours() -> None:
    """It is no shell's: words, the last of which is a script of this project."""
    command = app_yaml()["command"]
    uses_uv(command)
    assert command[1] == "run"
    assert command[-1] in PROJECT["project"]["scripts"]


def instructions(name: str) -> list[str]:
    """What follows an instruction of the Dockerfile, each time."""
    return [line.strip() for line in re.findall(rf"^ *{name} (.*)$", DOCKERFILE, re.MULTILINE)]


def test_the_image_installs_what_production_needs() -> None:
    """On a Python that the project takes; the model only when asked for."""
    (base,) = instructions("FROM")
    minor = re.fullmatch(r"python:3\.(\d+)-slim", base)
    assert minor
    assert int(minor[1]) >= int(PROJECT["project"]["requires-python"].removeprefix(">=3."))
    syncs = [run for run in instructions("RUN") if run.startswith("uv ")]
    assert len(syncs) == 2
    for sync in syncs:
        uses_uv(sync.split())
        assert sync.endswith("${MODEL:+--group model}")
    assert "model" in PROJECT["dependency-groups"]
    assert instructions("ARG") == ["MODEL="]


def test_the_image_runs_as_nobody_special() -> None:
    """With a number, so that an orchestrator can tell; the files of a volume are its own."""
    assert instructions("USER") == ["1000:1000"]
    assert instructions("VOLUME") == ["/data"]
    (command,) = instructions("CMD")[-1:]
    assert json.loads(command)[0] in PROJECT["project"]["scripts"]


def test_the_image_serves_others_only_behind_a_proxy() -> None:
    """As the server does everywhere: it starts when told that somebody says who asks."""
    settings = dict(re.findall(r"(\w+)=(\S+)", instructions("ENV")[-1]))
    assert settings.keys() - {"PATH", "PYTHONUNBUFFERED"} <= SETTINGS
    assert settings["DATABASE_URL"] == "sqlite:////data/threadkeep.db"
    assert instructions("EXPOSE") == [str(Settings.read(settings).listen_port)]
    with pytest.raises(SettingsError, match="THREADKEEP_TRUST_PROXY_HEADERS"):
        check_exposure(Settings.read(settings))
    check_exposure(Settings.read(settings | {"THREADKEEP_TRUST_PROXY_HEADERS": "1"}))


def test_the_image_is_built_from_the_code_alone() -> None:
    """Everything else is left out, and what is copied is there."""
    rules = [r for r in (ROOT / ".dockerignore").read_text().splitlines() if r and r[0] != "#"]
    assert rules[0] == "*"

    def is_sent(path: str) -> bool:
        sent = True
        for rule in rules:
            pattern = rule.removeprefix("!")
            if fnmatch(path, pattern) or path.startswith(f"{pattern}/"):
                sent = rule.startswith("!")
        return sent

    for copy in instructions("COPY"):
        for source in copy.split()[1:-1]:
            assert (ROOT / source).exists(), source
            assert is_sent(source), source
    for name in (".env", "agent_server/.env", "threadkeep.db", "src/x.db-wal", ".git/config"):
        assert not is_sent(name), name


def test_the_image_asks_whether_it_is_healthy(running_app: RunningApp) -> None:
    """With its own Python, at the port that is set."""
    check = json.loads(DOCKERFILE.split("HEALTHCHECK")[1].split("CMD", 1)[1].split("\n")[0])
    assert check[0] == "python"

    def code(port: str) -> int:
        command = [sys.executable, *check[1:]]
        done = subprocess.run(command, env={"PORT": port}, capture_output=True, check=False)
        return done.returncode

    assert code(running_app.url.rpartition(":")[2]) == 0
    assert code("9") != 0
