"""The page of all settings is the code's, and takes up whatever a setting may look like."""

from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import Literal
from unittest import mock

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings

from vidurai_pipeline.settings import Settings

DOCS = Path(__file__).parents[1] / "docs"
PAGE = DOCS / "configuration.md"
_SOURCE = str(DOCS / "generate_configuration.py")
generate_configuration = SourceFileLoader("generate_configuration", _SOURCE).load_module()


def test_the_page_is_what_the_code_says() -> None:
    assert PAGE.read_text() == generate_configuration.configuration_page(), "stale: run `make docs`"


def test_every_setting_is_described() -> None:
    for name, field in Settings.model_fields.items():
        assert field.description, name


def test_new_kinds_of_settings_are_taken_up() -> None:
    class New(BaseSettings):
        vacuum: Literal["off", "full"] = Field("off", description="when to vacuum | or not")
        share: float = Field(0.5, ge=0, lt=1, description="a share")
        early: bool = Field(True, description="a switch")
        webhook: SecretStr | None = Field(None, description="where alerts go")
        receivers: list[str] = Field([], description="who is told")

    with mock.patch.object(generate_configuration, "Settings", New):
        page = generate_configuration.configuration_page()
    for row in (
        "| `VIDURAI_VACUUM` | `off` or `full` | `off` | when to vacuum \\| or not |",
        "| `VIDURAI_SHARE` | number, ≥ 0, < 1 | `0.5` | a share |",
        "| `VIDURAI_EARLY` | `true` or `false` | `true` | a switch |",
        "| `VIDURAI_WEBHOOK` | text, kept secret | see meaning | where alerts go |",
        "| `VIDURAI_RECEIVERS` | JSON list: text | `[]` | who is told |",
    ):
        assert row in page.splitlines()
