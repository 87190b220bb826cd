"""Every setting, read once from the environment, in one place.

`.env.example` lists them for people; a test holds the two together.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, Self

from dotenv import load_dotenv
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from threadkeep.errors import SettingsError
from threadkeep.limits import MAX_ITEM_BYTES, MAX_SESSION_ITEMS


def load_env(folder: Path) -> None:
    """Reads a folder's `.env` into the environment; what is set there already stays.

    Raises:
        SettingsError: It can't be read.
    """
    try:
        load_dotenv(folder / ".env")
    except UnicodeDecodeError as error:
        raise SettingsError("The file .env is not in UTF-8. Save it anew, as UTF-8.") from error


class DatabaseSettings(BaseModel):
    """Where sessions are kept. Each field is read from the variable that its alias names."""

    model_config = ConfigDict(frozen=True, hide_input_in_errors=True)

    lakebase_autoscaling_endpoint: str | None = Field(None, alias="LAKEBASE_AUTOSCALING_ENDPOINT")
    lakebase_autoscaling_project: str | None = Field(None, alias="LAKEBASE_AUTOSCALING_PROJECT")
    lakebase_autoscaling_branch: str | None = Field(None, alias="LAKEBASE_AUTOSCALING_BRANCH")
    lakebase_instance_name: str | None = Field(None, alias="LAKEBASE_INSTANCE_NAME")
    pgdatabase: str = Field("databricks_postgres", alias="PGDATABASE")
    pghost: str | None = Field(None, alias="PGHOST")
    pguser: str | None = Field(None, alias="PGUSER")
    pgport: int = Field(5432, alias="PGPORT", ge=1, le=65535)
    database_url: str | None = Field(None, alias="DATABASE_URL", repr=False)
    schema_name: str = Field(
        "threadkeep", alias="LAKEBASE_AGENT_MEMORY_SCHEMA", max_length=63, pattern=r"^[^\x00]+$"
    )
    databricks_app_name: str | None = Field(None, alias="DATABRICKS_APP_NAME")
    encryption_key: str | None = Field(None, alias="ENCRYPTION_KEY", repr=False)
    encryption_key_file: Path | None = Field(None, alias="ENCRYPTION_KEY_FILE")

    @classmethod
    def read(cls, environment: Mapping[str, str]) -> Self:
        """Reads the settings; a variable that is empty counts as not set.

        Args:
            environment: Values by name, as `os.environ` holds them.

        Raises:
            SettingsError: One of them can't be used; says which, and what it may be.
        """
        names = {field.alias or name for name, field in cls.model_fields.items()}
        values = {name: environment[name] for name in names if environment.get(name)}
        if "LOG_LEVEL" in values:
            values["LOG_LEVEL"] = values["LOG_LEVEL"].upper()
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            problem = error.errors(include_input=False)[0]
            raise SettingsError(f"{problem['loc'][0]}: {problem['msg']}.") from error

    @property
    def of_the_database(self) -> DatabaseSettings:
        """These settings without those of a server: two of the same database are equal."""
        fields = DatabaseSettings.model_fields.items()
        values = {field.alias or name: getattr(self, name) for name, field in fields}
        return DatabaseSettings.model_validate(values)

    @property
    def uses_lakebase(self) -> bool:
        """Whether a Lakebase is named, which wins over `DATABASE_URL`."""
        return any(
            (
                self.lakebase_autoscaling_endpoint,
                self.lakebase_autoscaling_project,
                self.lakebase_autoscaling_branch,
                self.lakebase_instance_name,
            )
        )


class Settings(DatabaseSettings):
    """The settings of a server."""

    agent_model: str | None = Field(None, alias="AGENT_MODEL")
    databricks_host: str | None = Field(None, alias="DATABRICKS_HOST")
    openai_api_key: str | None = Field(None, alias="OPENAI_API_KEY", repr=False)
    openai_base_url: str | None = Field(None, alias="OPENAI_BASE_URL")
    openai_api: Literal["chat_completions", "responses"] | None = Field(None, alias="OPENAI_API")
    databricks_app_port: int | None = Field(None, alias="DATABRICKS_APP_PORT", ge=0, le=65535)
    port: int = Field(8000, alias="PORT", ge=0, le=65535)
    host: str | None = Field(None, alias="HOST")
    workers: int = Field(1, alias="WORKERS", ge=1, le=64)
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", alias="LOG_LEVEL")
    task_timeout_seconds: float = Field(3600, alias="TASK_TIMEOUT_SECONDS", gt=0)
    session_concurrency: Literal["enqueue", "reject", "interrupt", "rollback"] = Field(
        "enqueue", alias="SESSION_CONCURRENCY"
    )
    session_queue_limit: int = Field(100, alias="SESSION_QUEUE_LIMIT", ge=1)
    request_max_bytes: int = Field(8 * 1024 * 1024, alias="REQUEST_MAX_BYTES", ge=1024)
    message_max_chars: int = Field(2_000_000, alias="MESSAGE_MAX_CHARS", ge=1)
    item_max_bytes: int = Field(MAX_ITEM_BYTES, alias="ITEM_MAX_BYTES", ge=4096)
    session_max_items: int = Field(MAX_SESSION_ITEMS, alias="SESSION_MAX_ITEMS", ge=1)
    requests_per_minute: int | None = Field(None, alias="REQUESTS_PER_MINUTE", ge=1, le=6000)
    run_retention_days: float = Field(7, alias="RUN_RETENTION_DAYS", gt=0)
    session_retention_days: float | None = Field(
        None, alias="SESSION_RETENTION_DAYS", gt=0, le=36500
    )
    approval_expiry_days: float = Field(7, alias="APPROVAL_EXPIRY_DAYS", gt=0, le=3650)
    approval_webhook_url: str | None = Field(None, alias="APPROVAL_WEBHOOK_URL", repr=False)
    approval_webhook_secret: str | None = Field(None, alias="APPROVAL_WEBHOOK_SECRET", repr=False)
    memory_recall_tokens: int | None = Field(None, alias="MEMORY_RECALL_TOKENS", ge=0, le=20_000)
    embedding_model: str | None = Field(None, alias="EMBEDDING_MODEL")
    memory_extraction: Literal["on", "off"] = Field("off", alias="MEMORY_EXTRACTION")
    trust_proxy_headers: bool = Field(False, alias="THREADKEEP_TRUST_PROXY_HEADERS")
    api_keys: str | None = Field(None, alias="THREADKEEP_API_KEYS", repr=False)

    @property
    def listen_host(self) -> str:
        """The address to listen on: all of them in a Databricks App, else this machine's own."""
        return self.host or ("0.0.0.0" if self.databricks_app_name else "127.0.0.1")  # noqa: S104

    @property
    def listen_port(self) -> int:
        """The port to listen on; 0 takes any that is free."""
        return self.port if self.databricks_app_port is None else self.databricks_app_port

    @property
    def knows_users(self) -> bool:
        """Whether something says who asks, so that others than its one user may be served."""
        return self.behind_proxy or bool(self.api_keys)

    @property
    def behind_proxy(self) -> bool:
        """Whether a proxy in front says who the user is, and clients can't say it themselves."""
        return self.trust_proxy_headers or self.databricks_app_name is not None
