"""``vidurai-pipeline mcp``."""

from importlib.util import find_spec

import click

from vidurai_pipeline.cli import limits
from vidurai_pipeline.cli.options import seconds_option
from vidurai_pipeline.errors import ConfigError
from vidurai_pipeline.settings import load_settings, memory_bytes


@click.command()
@click.option("--allow-restore", is_flag=True, help="Also offer a tool that restores memories by their ids.")
@seconds_option(3_600, 30.0, "Stop a question after this many seconds.")
def mcp(allow_restore: bool, timeout: float) -> None:
    """Let coding assistants search the memories (Model Context Protocol).

    It speaks with one assistant over standard input and output, until the assistant closes them. An assistant can
    only read. VIDURAI_MCP_EXCLUDE_PROJECTS keeps projects out of its sight.

    For example, for Claude Code: claude mcp add vidurai -- vidurai-pipeline mcp
    """
    if find_spec("mcp") is None:
        raise ConfigError("the package `mcp` is not installed", "pip install 'vidurai-pipeline[mcp]'")
    settings = load_settings()
    from vidurai_pipeline.cli.mcp_server import serve  # noqa: PLC0415  (needs that package)

    limits.bound_memory(memory_bytes(settings.memory_limit), settings.threads)
    serve(settings, timeout=timeout, allow_restore=allow_restore)
