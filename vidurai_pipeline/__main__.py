"""``python -m vidurai_pipeline``: the command line without its script."""

from vidurai_pipeline.cli.main import main

main(prog_name="vidurai-pipeline")
