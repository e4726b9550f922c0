"""The page of all settings is the code's, and takes up whatever a setting may look like."""

import importlib.util
import re
from enum import StrEnum
from pathlib import Path
from typing import Literal
from unittest import mock

import pytest
from pydantic import ByteSize, Field, SecretStr
from pydantic_settings import BaseSettings

from vidurai_pipeline.errors import ConfigError
from vidurai_pipeline.settings import Settings, load_settings

pytestmark = pytest.mark.fast

DOCS = Path(__file__).parents[1] / "docs"
PAGE = DOCS / "configuration.md"
_SPEC = importlib.util.spec_from_file_location("generate_configuration", DOCS / "generate_configuration.py")
assert _SPEC
assert _SPEC.loader
generate_configuration = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(generate_configuration)


def test_the_page_is_what_the_code_says() -> None:
    assert PAGE.read_text() == generate_configuration.configuration_page(), "stale: run `make docs`"


def test_every_setting_is_described() -> None:
    for name, field in Settings.model_fields.items():
        assert field.description, name


def rows() -> list[tuple[str, str, str]]:
    """Each setting of the page: its variable, what it takes, its default."""
    return re.findall(r"^\| `(VIDURAI_\w+)` \| (.+?) \| (.+?) \|", PAGE.read_text(), re.MULTILINE)


def test_every_printed_default_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    defaults = {name: default.strip("`") for name, _, default in rows() if default.startswith("`")}
    assert len(defaults) > 20
    for name in ("VIDURAI_SECRETS_CHECK", "VIDURAI_EMBED_MINUTES"):  # which the tests turn off
        monkeypatch.delenv(name)
    usual = Settings()
    for name, default in defaults.items():
        monkeypatch.setenv(name, default)
    monkeypatch.setenv("VIDURAI_HOME", str(usual.home))
    assert Settings() == usual


def test_every_printed_choice_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = [(name, choice) for name, kind, _ in rows() if "` or `" in kind for choice in re.findall(r"`(\w+)`", kind)]
    assert ("VIDURAI_REWARD_PROFILE", "cost_focused") in chosen
    for name, choice in chosen:
        with monkeypatch.context() as here:
            here.setenv(name, choice)
            load_settings()


class Level(StrEnum):
    LOW = "low"
    HIGH = "high"


def test_new_kinds_of_settings_are_taken_up() -> None:
    class New(BaseSettings):
        vacuum: Literal["off", "full"] = Field("off", description="when to vacuum | or not")
        share: float = Field(0.5, ge=0, lt=1, description="a share")
        early: bool = Field(True, description="a switch")
        webhook: SecretStr | None = Field(None, description="where alerts go")
        size: ByteSize = Field(ByteSize(5), description="how much")
        level: Level = Field(Level.LOW, description="how high")

    with mock.patch.object(generate_configuration, "Settings", New):
        page = generate_configuration.configuration_page()
    for row in (
        "| `VIDURAI_VACUUM` | `off` or `full` | `off` | when to vacuum \\| or not |",
        "| `VIDURAI_SHARE` | number, ≥ 0, < 1 | `0.5` | a share |",
        "| `VIDURAI_EARLY` | `true` or `false` | `true` | a switch |",
        "| `VIDURAI_WEBHOOK` | text, kept secret | see meaning | where alerts go |",
        "| `VIDURAI_SIZE` | size, such as `500MB` or `2GiB` | `5` | how much |",
        "| `VIDURAI_LEVEL` | `low` or `high` | `low` | how high |",
    ):
        assert row in page.splitlines()


def test_retention_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_settings().retention == ()
    monkeypatch.setenv("VIDURAI_RETENTION", "noise=90d,LOW=2y , project:it's a=b=26w, event_type:chat=1d,")
    assert [(rule.column, rule.value, rule.days) for rule in load_settings().retention] == [
        ("salience", "NOISE", 90),
        ("salience", "LOW", 730),
        ("project_name", "it's a=b", 182),
        ("event_type", "chat", 1),
    ]


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("NOISE", "'NOISE' is not a retention rule"),
        ("LOW=2y, NOISE=90", "'NOISE=90' is not"),
        ("NOISE=0d", "'NOISE=0d' is not"),
        ("NOISE=-1d", "'NOISE=-1d' is not"),
        ("NOISE=3m", "'NOISE=3m' is not"),
        ("LOUD=90d", "'LOUD=90d' is not"),
        ("project:=90d", "'project:=90d' is not"),
        ("tag:x=90d", "'tag:x=90d' is not"),
        ("*=1d", "'*=1d' is not"),
        ("NOISE=1d, noise=2d", "'NOISE=1d' and 'noise=2d' are rules for the same memories"),
    ],
)
def test_what_is_no_retention_rule(monkeypatch: pytest.MonkeyPatch, text: str, wrong: str) -> None:
    monkeypatch.setenv("VIDURAI_RETENTION", text)
    with pytest.raises(ConfigError) as raised:
        load_settings()
    assert str(raised.value).startswith("VIDURAI_RETENTION=")
    assert wrong in str(raised.value)
    assert "\n" not in str(raised.value)
