"""``vidurai-pipeline query``."""

from typing import Any

import click

from vidurai_pipeline.cli import output
from vidurai_pipeline.cli.options import format_option
from vidurai_pipeline.cli.questions import analyst, question_options


@click.command()
@click.argument("sql")
@question_options
@format_option("table", "json", "csv")
def query(sql: str, form: str, **options: Any) -> None:
    """Run SQL over the memories.

    It reads these views: `history`, what is archived; `memories`, that and what is still in the hot store, with its
    `tier`; `history_all`, every stored copy; and `projects`.

    Times and salience are text. To compare them or to count with them, use created_ts, expires_ts and archived_ts
    (TIMESTAMP in UTC) and salience_score (CRITICAL 5 to NOISE 1):

    \b
      SELECT date_trunc('month', created_ts) AS month, count(*)
      FROM memories GROUP BY 1 ORDER BY 1
    \b
      SELECT id, gist FROM memories
      WHERE created_ts > now() - INTERVAL 30 DAY AND salience_score >= 4
    \b
      SELECT name, hot, cold, newest FROM projects ORDER BY newest DESC
    """  # noqa: D301  (click's mark for lines that stay as they are)
    with analyst(**options) as asked:
        output.print_rows(*asked.query_rows(sql), form)
