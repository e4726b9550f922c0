"""The SQL of the views ``history``, ``history_all`` and ``memories``.

The first two read the files with an explicit schema, so that nothing but the planner's listing stands between a query
and the files it needs: no footer is read to plan a query, and the partition columns prune files before they are opened.

``history`` leaves out copies of a memory that a newer copy supersedes. Their places are worked out once per listing
(see :meth:`Views.superseded_places`); an archive without duplicates, which is what this pipeline writes, pays nothing.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from vidurai_pipeline.analytics.file_schemas import is_nested, shown_names, united
from vidurai_pipeline.analytics.times import utc_timestamp
from vidurai_pipeline.cold.listing import FILE, MONTH, STORE, YEAR, Listing, quote_literal
from vidurai_pipeline.hot.sql import quote_identifier
from vidurai_pipeline.hot.view import HiddenProjects

SUPERSEDED = "_superseded"
_PARTITIONED, _LOOSE = "_partitioned_files", "_loose_files"
HOT = "_hot"
"""The session's table of the hot store's memories."""

IN_BOTH = "_in_both_tiers"
"""The session's table of the memories that the archive holds too: ``id`` and ``created_at``."""

NOT_READ = "a column of the hot store was not read"
"""What a query fails with that needs more of the hot store than was thought."""

PROJECT = ("project_name", "project_path")
"""Columns of a memory's project, which files of later versions have; of others, the hot store may know."""
#: Gives the memories nearest to a text, as a list of ``NEAREST_TYPE``.
NEAREST = "_nearest_memories"
NEAREST_TYPE = "STRUCT(store VARCHAR, id BIGINT, created TIMESTAMP, similarity DOUBLE)[]"


def projects(columns: Collection[str]) -> str:
    """Make the SQL of the view of the projects, with how many memories each has in which tier."""
    store = "store, " if "store" in columns else ""
    return f"""
        SELECT {store}project_id AS id, project_name AS name, project_path AS path,
            count(*) FILTER (tier = 'hot') AS hot, count(*) FILTER (tier = 'cold') AS cold,
            min(created_ts) AS oldest, max(created_ts) AS newest
        FROM memories GROUP BY ALL ORDER BY {store}id
    """


def similar_memories(columns: Collection[str]) -> str:
    """Make the table macro that gives the memories most similar to a text."""
    same_store = " AND history.store IS NOT DISTINCT FROM near.store" if "store" in columns else ""
    taken = {name.lower() for name in columns}
    question, number = (next(free for n in range(1, 99) if (free := "_" * n + name) not in taken) for name in "qn")
    return f"""
        similar_memories({question}, {number} := 20) AS TABLE
        SELECT history.*, near.similarity
        FROM (SELECT unnest({NEAREST}({question}::VARCHAR, {number}::BIGINT), recursive := true)) AS near
        JOIN history
        ON history.id = near.id AND history.created_ts IS NOT DISTINCT FROM near.created{same_store}
        ORDER BY near.similarity DESC
    """


COMPANIONS = {
    "created_ts": ("TIMESTAMP", utc_timestamp('"created_at"')),
    "expires_ts": ("TIMESTAMP", utc_timestamp('"expires_at"')),
    "archived_ts": ("TIMESTAMP", utc_timestamp('"archived_at"')),
    "salience_score": ("INTEGER", 'salience_score("salience")'),
}
"""Columns of the views that can be compared and counted with: their types, and what they are made of."""

COMMENTS = {
    name: f"{name.removesuffix('_ts')}_at as a time in UTC; text without an offset is taken as UTC"
    for name in COMPANIONS
    if name.endswith("_ts")
} | {"salience_score": "the level of salience: CRITICAL 5, HIGH 4, MEDIUM 3, LOW 2, NOISE 1"}
"""What the companions' comments say."""

SALIENCE_SCORE = """(x VARCHAR) AS CASE upper(trim(x))
    WHEN 'CRITICAL' THEN 5 WHEN 'HIGH' THEN 4 WHEN 'MEDIUM' THEN 3 WHEN 'LOW' THEN 2 WHEN 'NOISE' THEN 1
    ELSE CASE try_cast(x AS DOUBLE) WHEN 5 THEN 5 WHEN 4 THEN 4 WHEN 3 THEN 3 WHEN 2 THEN 2 WHEN 1 THEN 1 END END,
    (x) AS x"""
"""The overloads of the macro ``salience_score``: text becomes its level, anything else stays what it is.

Files of others may hold the levels as numbers, which the views show as text.
"""

# Which row of its file a copy is. DuckDB's number of the file itself depends on how many files a query reads.
_PLACE = "file_row_number"
# Of an encrypted file's rows Arrow gives no numbers: what tells the copies of one memory apart must do.
_ENCRYPTED_PLACE = "(hash(id, created_at, archived_at) >> 2)::BIGINT"
_OWN_COLUMNS = {
    "year": "INTEGER",
    "month": "INTEGER",
    "store": "VARCHAR",
    "filename": "VARCHAR",
    "place": "BIGINT",
}


@dataclass(frozen=True)
class Stores:
    """Whose memories the views show, where several stores share an archive.

    Attributes:
        several: whether they do; the views then have a column ``store``.
        own: the name of the hot store that is shown beside the archive; None if it has none.
        hot: whether that is shown; not beside the archive of another store alone.
    """

    several: bool = False
    own: str | None = None
    hot: bool = True

    @property
    def columns(self) -> list[str]:
        """What a memory is known by beside its id."""
        return ["store"] if self.several else []

    @property
    def is_own(self) -> str:
        """The condition that a memory is of that hot store, whose ids mean nothing elsewhere."""
        return f"store IS NOT DISTINCT FROM {self.name}" if self.several else "true"

    @property
    def name(self) -> str:
        """The hot store's name as SQL."""
        return quote_literal(self.own) if self.own else "CAST(NULL AS VARCHAR)"


class Views:
    """The views over one listing of the archive."""

    def __init__(
        self,
        listing: Listing,
        columns: Mapping[str, str],
        encrypted: Mapping[str, Collection[str]] | None = None,
        hidden: HiddenProjects | None = None,
        stores: Stores | None = None,
    ) -> None:
        """Prepare the SQL."""
        self._listing = listing
        self._stores = stores or Stores()
        self._hidden = hidden
        self._encrypted = encrypted or {}
        # Files beside the layout have no partition of their own. And above an archive that itself lies in a folder
        # named like a partition DuckDB would take that folder's value for the file's.
        hive = not any(f"/{name}=" in listing.root for name in ("year", "month", "store"))
        plain = [file for file in listing.files if file.key is None]
        # DuckDB reads files together only if all have the same partition columns.
        fit = [hive and file.partitioned and bool(file.store) == self._stores.several for file in plain]
        self._partitioned = [file for file, fits in zip(plain, fit, strict=True) if fits]
        self._loose = [file for file, fits in zip(plain, fit, strict=True) if not fits]
        shown = shown_names(columns)
        self._of_files = {shown[name]: name for name in columns}
        self._columns = {shown[name]: type_ for name, type_ in columns.items()}
        #: The columns of ``history``.
        self.columns = [
            *dict.fromkeys([*self._columns, "content", "year", "month", *self._stores.columns, *PROJECT, *COMPANIONS])
        ]

    def file_macros(self, *, first_only: bool) -> list[str]:
        """The macros that the views read their lists of files from, each as ``name() AS list``.

        To make a view, DuckDB binds it, which takes its time with thousands of files. A macro is bound only where it
        is used: so the views are made over the first file of each list, and the lists are filled in afterwards.

        Args:
            first_only: whether each list is to hold its first file alone.
        """
        lists = {_PARTITIONED: self._partitioned, _LOOSE: self._loose}
        return [
            f"{macro}() AS {self._listing.sql(files[:1] if first_only else files)}"
            for macro, files in lists.items()
            if files
        ]

    def history_all(self) -> str:
        """Every stored copy, with the file it is stored in."""
        filename = "filename"
        root, shown = self._listing.root, str(self._listing.base)
        if root != shown:
            filename = f"{quote_literal(shown)} || substr(filename, {len(root) + 1}) AS filename"
        return self._shown(self._union([*self._names(), filename]))

    def history(self, *, duplicates: bool) -> str:
        """Each memory once."""
        return self._shown(self._union(self._names(), without_superseded=duplicates))

    def superseded_places(self) -> str:
        """Find the copies that a newer copy of the same memory supersedes.

        Only memories that are there twice are looked at closely: the first step reads nothing but ids.
        """
        key = ["id", *self._stores.columns]
        keys = ", ".join(key)
        same = " AND ".join(
            ["copy.id = repeated.id", *(f"copy.{name} IS NOT DISTINCT FROM repeated.{name}" for name in key[1:])]
        )
        return f"""
            WITH repeated AS (
                SELECT {keys} FROM ({self._union(key)}) GROUP BY ALL HAVING count(*) > 1
            )
            SELECT substr(filename, {len(self._listing.root) + 2}), place
            FROM ({self._union([*key, "created_at", "archived_at", "filename", "place"])}) AS copy
            SEMI JOIN repeated ON {same}
            QUALIFY (filename, place) <> first_value((filename, place)) OVER (
                PARTITION BY {keys}, created_at
                ORDER BY {utc_timestamp("archived_at")} DESC NULLS LAST, archived_at DESC NULLS LAST, filename DESC,
                    place DESC
            )
        """

    def _shown(self, sql: str) -> str:
        """Leave out hidden projects. DuckDB moves no condition below a LIMIT, so none meets what is hidden."""
        if not self._hidden:
            return sql
        texts = ", ".join(_comparable(quote_literal(name)) for name in self._hidden.names)
        conditions = [f"coalesce({_comparable(name)} IN ({texts}), false)" for name in PROJECT]
        if self._hidden.ids and "project_id" in self._columns:
            ids = ", ".join(map(str, sorted(self._hidden.ids)))
            conditions.append(f"{self._stores.is_own} AND coalesce(try_cast(project_id AS BIGINT) IN ({ids}), false)")
        return f"SELECT * FROM ({sql}) WHERE NOT ({' OR '.join(conditions)}) LIMIT {2**63 - 1}"

    def _names(self) -> list[str]:
        names = {name: quote_identifier(name) for name in self._columns}
        own = next((name for name in names if name.lower() == "content"), None)
        if own is None:
            names["content"] = "verbatim AS content"
        else:
            # A later schema's own `content` wins; files from before it have only the memory's text to show.
            text = "content" if self._columns[own] == "VARCHAR" else "CAST(content AS VARCHAR)"
            names[own] = f"coalesce({text}, verbatim) AS content"
        names |= {name: name for name in ("year", "month", *self._stores.columns)}
        names |= {name: f"CAST(NULL AS VARCHAR) AS {name}" for name in PROJECT if name not in names}
        return [*names.values(), *(f"{expression} AS {name}" for name, (_, expression) in COMPANIONS.items())]

    def _union(self, selection: Sequence[str], *, without_superseded: bool = False) -> str:
        branches = []
        if self._partitioned:
            store = ", 'store': VARCHAR" if self._stores.several else ""
            source = self._source(_PARTITIONED, f"true, hive_types = {{'year': INTEGER, 'month': INTEGER{store}}}")
            branches.append(_branch(source, selection, {"place": _PLACE}, without_superseded))
        if self._loose:
            partition = {
                key: f"try_cast(regexp_extract(filename, '.*/{key}=([0-9]+)/', 1) AS INTEGER)"
                for key in ("year", "month")
            }
            within = f"substr(filename, {len(self._listing.root) + 2})"
            partition["store"] = f"nullif(regexp_extract({within}, '^store=([^/]+)/', 1), '')"
            own = {**partition, "place": _PLACE}
            branches.append(_branch(self._source(_LOOSE, "false"), selection, own, without_superseded))
        for table, names in self._encrypted.items():
            branches.append(_branch(self._of_table(table, names), selection, {"place": "place"}, without_superseded))
        if not branches:
            typed = [f"CAST(NULL AS {type_}) AS {quote_identifier(name)}" for name, type_ in self._columns.items()]
            typed += [f"CAST(NULL AS {type_}) AS {name}" for name, type_ in _OWN_COLUMNS.items()]
            branches.append(f"SELECT {', '.join(selection)} FROM (SELECT {', '.join(typed)}) WHERE false")
        return " UNION ALL ".join(branches)

    def _of_table(self, table: str, names: Collection[str]) -> str:
        """A table of encrypted files, with the columns that ``read_parquet`` would give."""
        own = {name.lower(): quote_identifier(name) for name in names}
        items = [
            f"CAST({own.get(self._of_files[name].lower(), 'NULL')} AS {type_}) AS {quote_identifier(name)}"
            for name, type_ in self._columns.items()
        ]
        items += [f"{YEAR} AS year", f"{MONTH} AS month", f"{STORE} AS store", f"{FILE} AS filename"]
        items.append(f"{_ENCRYPTED_PLACE} AS place")
        return f"(SELECT {', '.join(items)} FROM {table})"

    def _source(self, macro: str, hive: str) -> str:
        schema = ", ".join(
            f"{quote_literal(self._of_files[name])}: "
            f"{{name: {quote_literal(name)}, type: {quote_literal(type_)}, default_value: NULL}}"
            for name, type_ in self._columns.items()
        )
        return f"read_parquet({macro}(), schema = MAP {{{schema}}}, hive_partitioning = {hive})"


def hot_source(table: str, columns: Mapping[str, str], read: Collection[str]) -> str:
    """Make the SQL of the hot store's memories with all their columns, of which only some were read.

    Args:
        table: what was read.
        columns: all columns, with their types.
        read: those that the table has. Whoever asks for another gets an error, never NULL.
    """
    names = [
        quote_identifier(name)
        if name in read
        else f"CAST(error({quote_literal(NOT_READ)}) AS {type_}) AS {quote_identifier(name)}"
        for name, type_ in columns.items()
    ]
    return f"(SELECT {', '.join(names)} FROM {table})"


@dataclass(frozen=True)
class BothTiers:
    """Both tiers as one table, each memory once: what is still in the hot store is shown as it is there.

    Args:
        cold: the columns of ``history`` and their types.
        hot: the columns of the hot store and theirs.
        projects: the hot store's projects, as :meth:`HotSnapshot.projects` gives them.
        stores: the stores that share the archive.
    """

    cold: Mapping[str, str]
    hot: Mapping[str, str]
    projects: Sequence[tuple[int, str | None, str | None]]
    stores: Stores

    @cached_property
    def columns(self) -> dict[str, str]:
        """The columns of the view, with their types."""
        own = [name for name in self.cold if name in _OWN_OF_BOTH]
        columns = {name: type_ for name, type_ in self.cold.items() if name.lower() not in {*own, "tier"}}
        known = {name.lower() for name in columns}
        columns |= {name: type_ for name, type_ in self.hot.items() if name.lower() not in {*known, *own, "tier"}}
        return columns | {name: self.cold[name] for name in own} | {"tier": "VARCHAR"}

    def hot_side(self, source: str) -> str:
        """The hot memories."""
        theirs = {name.lower(): (name, type_) for name, type_ in self.hot.items()}
        items = []
        for column, type_ in self.columns.items():
            if column in PROJECT:
                expression = self._of_project(column)
            elif column == "store" and self.stores.several:
                expression = self.stores.name
            elif column in _OWN_OF_BOTH:
                expression = _OWN_OF_BOTH[column] or f"CAST(NULL AS {type_})"
            elif column.lower() in theirs:
                name, hot_type = theirs[column.lower()]
                shown = "VARCHAR" if _only_text_suits(type_, hot_type) else hot_type
                expression = f"CAST({quote_identifier(name)} AS {shown})"
            else:
                expression = f"CAST(NULL AS {type_})"
            items.append(f"{expression} AS {quote_identifier(column)}")
        return f"SELECT {', '.join(items)} FROM {source}{'' if self.stores.hot else ' WHERE false'}"

    def cold_side(self, *, duplicates: bool) -> str:
        """The archived memories."""
        theirs = {name.lower(): type_ for name, type_ in self.hot.items()}
        cold = {name.lower() for name in self.cold}
        items = []
        for column, type_ in self.columns.items():
            name = quote_identifier(column)
            if column == "tier":
                items.append("'cold' AS tier")
            elif column in PROJECT:  # of files from before they had it, the hot store may know
                known = f"CASE WHEN {self.stores.is_own} THEN {self._of_project(column)} END"
                items.append(f"coalesce({name}, {known}) AS {name}")
            elif column.lower() not in cold:
                items.append(f"CAST(NULL AS {type_}) AS {name}")
            elif column not in _OWN_OF_BOTH and _only_text_suits(type_, theirs.get(column.lower(), type_)):
                items.append(f"CAST({name} AS VARCHAR) AS {name}")
            else:
                items.append(name)
        both = f"""
            ANTI JOIN {IN_BOTH} AS hot ON hot.id = history.id AND hot.created_at IS NOT DISTINCT FROM history.created_at
                AND {self.stores.is_own}
        """
        return f"SELECT {', '.join(items)} FROM history {both if duplicates else ''}"

    def _of_project(self, column: str) -> str:
        """A memory's project, from a map of the hot store's: a subquery would be run although nobody asks for it."""
        if not self.projects:
            return "CAST(NULL AS VARCHAR)"
        ids = ", ".join(str(project[0]) for project in self.projects)
        texts = (path if column == "project_path" else name for _, name, path in self.projects)
        literals = ", ".join("NULL" if text is None else quote_literal(text) for text in texts)
        return f'MAP([{ids}]::BIGINT[], [{literals}]::VARCHAR[])["project_id"]'

    def sql(self, source: str, *, duplicates: bool) -> str:
        """The view; see :meth:`hot_side` and :meth:`cold_side`."""
        return f"{self.hot_side(source)} UNION ALL {self.cold_side(duplicates=duplicates)}"


# What the view shows of hot memories in its own columns; None for what they have not.
_OWN_OF_BOTH: dict[str, str | None] = {
    "content": '"verbatim"',
    "year": None,
    "month": None,
    "store": None,
    **dict.fromkeys(PROJECT),
    **{name: expression for name, (_, expression) in COMPANIONS.items()},
    "tier": "'hot'",
}


def listed_memories(columns: Sequence[str]) -> str:
    """What stands for the view of both tiers as long as no statement names it, so that it is listed with the others."""
    names = ", ".join(quote_identifier(name) for name in columns if name.lower() != "tier")
    reason = "the hot store was not read: ask for `memories` by this name alone"
    return f"SELECT {names}, CAST(NULL AS VARCHAR) AS tier FROM history WHERE error({quote_literal(reason)}) IS NULL"


def _only_text_suits(one: str, other: str) -> bool:
    """Whether values of both types fit into one column as text only; DuckDB itself unites numbers, and structs."""
    if one == other or all(type_.startswith("STRUCT(") and type_.endswith(")[]") for type_ in (one, other)):
        return False
    return any(map(is_nested, (one, other))) or united({one, other}, "") == "VARCHAR"


def _comparable(name: str) -> str:
    return f"nfc_normalize(lower(rtrim({name}, '/')))"


def _branch(source: str, selection: Sequence[str], own: Mapping[str, str], without_superseded: bool) -> str:
    """Select from one group of files, in a single step: a second projection would cost DuckDB its shortcuts.

    Args:
        source: the files.
        selection: what to select.
        own: the selected names that stand for an expression.
        without_superseded: whether to leave out superseded copies.
    """
    columns = ", ".join(f"{own[item]} AS {item}" if item in own else item for item in selection)
    if without_superseded:
        source += f" AS files ANTI JOIN {SUPERSEDED} AS gone"
        source += f" ON gone.filename = files.filename AND gone.place = files.{own['place']}"
    return f"SELECT {columns} FROM {source}"
