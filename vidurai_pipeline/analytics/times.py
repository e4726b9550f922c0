"""Vidurai's times, which are text, as moments that can be compared."""

#: What stands behind the time of a text that names its zone: an offset, ``Z`` or a name.
_ZONED = r"':\d\d.*[-+A-Za-z]'"
_FIRST, _LAST = "TIMESTAMP '0001-01-01'", "TIMESTAMP '9999-12-31 23:59:59.999999'"


def utc_timestamp(expression: str) -> str:
    """Make the SQL that reads ISO text as a TIMESTAMP in UTC; NULL for what is no time of the years 1 to 9999.

    Vidurai writes UTC without saying so. A text may have an offset or ``Z``, a space instead of the ``T``, fractions of
    a second, or no time at all (midnight then). The result does not depend on the session's time zone.

    Args:
        expression: SQL of type VARCHAR, such as a column's name. It is evaluated more than once.
    """
    zoned = rf"replace(regexp_replace({expression}, '\s+([-+])', '\1'), 'z', 'Z')"
    moment = (
        f"CASE WHEN regexp_matches({expression}, {_ZONED}) THEN timezone('UTC', TRY_CAST({zoned} AS TIMESTAMPTZ)) "
        f"ELSE TRY_CAST({expression} AS TIMESTAMP) END"
    )
    # DuckDB works out what stands here twice only once.
    return f"CASE WHEN {moment} BETWEEN {_FIRST} AND {_LAST} THEN {moment} END"
