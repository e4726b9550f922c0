"""Dagster starts reading here."""

from vidurai_pipeline.defs.build import build_definitions
from vidurai_pipeline.settings import load_settings

defs = build_definitions(load_settings())
