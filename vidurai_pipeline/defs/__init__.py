"""What Dagster shows and runs: wiring only, over the plain Python of the other packages."""
