"""Paths and settings, read once from ``VIDURAI_*`` environment variables."""

import contextlib
import difflib
import hashlib
import itertools
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, fields
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit
from zoneinfo import available_timezones

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ByteSize,
    Field,
    SecretStr,
    TypeAdapter,
    ValidationError,
    model_validator,
)
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from vidurai_pipeline.errors import ConfigError

#: How the hot store's free pages are given back to the disk.
Vacuum = Literal["off", "incremental", "full"]


class RewardProfile(StrEnum):
    """What its user wants most of the memory layer: a fair mean, few tokens, or nothing forgotten."""

    BALANCED = "balanced"
    COST_FOCUSED = "cost_focused"
    QUALITY_FOCUSED = "quality_focused"


@dataclass(frozen=True)
class Hyperparameters:
    """What a Q-table is trained with.

    Attributes:
        reward_profile: it sets the rewards.
        alpha: learning rate, above 0 up to 1: the share of an error that one experience corrects.
        gamma: discount, 0 to 1: what a reward is worth one step later.
        epsilon_max: Share of random decisions when learning begins, 0 to 1.
        epsilon_min: Share of random decisions that always remains, 0 to 1.
        epsilon_decay: how fast it falls from one to the other, per episode.
    """

    reward_profile: RewardProfile = RewardProfile.BALANCED
    alpha: float = 0.1
    gamma: float = 0.9
    epsilon_max: float = 0.3
    epsilon_min: float = 0.05
    epsilon_decay: float = 0.003

    @classmethod
    def of(cls, settings: "Settings") -> Self:
        """Those of the settings."""
        return cls(**{one.name: getattr(settings, one.name) for one in fields(cls)})


_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*:/", re.IGNORECASE)


def _path(path: Path) -> Path:
    # pathlib has made one slash of two.
    if _ADDRESS.match(str(path)):
        raise ValueError("an address; only a path on this machine will do")
    try:
        return path.expanduser().absolute()
    except RuntimeError as error:  # `~nobody`
        raise ValueError(f"no such home folder ({error})") from None


UserPath = Annotated[Path, AfterValidator(_path)]

#: The object stores that an archive can be in, by how their addresses begin.
OBJECT_STORES = {"s3": "s3://bucket/prefix", "gs": "gs://bucket/prefix", "az": "az://account/container/prefix"}


def _place(value: Any) -> Path | str:
    if not isinstance(value, str) or not (_ADDRESS.match(value) or value.startswith(("s3:", "gs:", "az:"))):
        return _path(Path(value))
    address = urlsplit(value)
    if address.scheme not in OBJECT_STORES or not address.netloc:
        raise ValueError(f"not a folder on this machine, nor an address like {', '.join(OBJECT_STORES.values())}")
    if "@" in address.netloc or address.query or address.fragment:
        raise ValueError("an address with credentials or options: set those in the environment")
    return value.rstrip("/")


#: A folder, or an address in an object store.
Place = Annotated[Path | str, BeforeValidator(_place)]

_SIZE = re.compile(r"\d+(\.\d+)?\s*([KMGT]i?)?B", re.IGNORECASE)
_SHARE = re.compile(r"(\d{1,2}(\.\d+)?|100)\s*%")


def _refusing(said: str, right: Callable[[str], object]) -> Callable[[Any], Any]:
    """A validator that refuses text which is not right, and says what it is not."""

    def check(value: Any) -> Any:
        if isinstance(value, str) and not right(value):
            raise ValueError(f"not {said}")
        return value

    return check


def memory_bytes(limit: str) -> int:
    """An amount of memory in bytes, as DuckDB understands it: ``1GB``, ``512MiB``, or ``50%`` of this machine's."""
    if share := _SHARE.fullmatch(limit):
        return int(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") * float(share[1]) / 100)
    return int(TypeAdapter(ByteSize).validate_python(limit))


# Pydantic alone would read "20%" as 20 bytes.
_checked_size = _refusing(
    "a size, such as 500MB or 2GiB; 0 for none", lambda text: text.strip() == "0" or _SIZE.fullmatch(text.strip())
)
#: A number of bytes, as people write it.
Size = Annotated[ByteSize, BeforeValidator(_checked_size)]
_checked_memory = _refusing(
    "an amount of memory, such as 1GB, 512MiB, or 50% of this machine's",
    lambda text: _SIZE.fullmatch(text) or _SHARE.fullmatch(text),
)
_checked_zone = _refusing("a time zone's name, such as Europe/Paris", lambda text: text in available_timezones())

_RULE = re.compile(r"(?:(?P<kind>project|event_type):)?(?P<value>.+?)\s*=\s*(?P<count>[1-9]\d{0,4})(?P<unit>[dwy])")
_DAYS = {"d": 1, "w": 7, "y": 365}
_SALIENCES = ("CRITICAL", "HIGH", "MEDIUM", "LOW", "NOISE")


@dataclass(frozen=True)
class RetentionRule:
    """How long memories of one kind are kept.

    Attributes:
        text: the rule as it was written, such as ``NOISE=90d``.
        column: of the archive: ``salience``, ``project_name`` or ``event_type``.
        value: what stands in that column.
        days: how old a memory may get.
    """

    text: str
    column: str
    value: str
    days: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read one rule.

        Raises:
            ValueError: it is none; the message says what one looks like.
        """
        found = _RULE.fullmatch(text)
        if not found or not (found["kind"] or found["value"].upper() in _SALIENCES):
            raise ValueError(
                f"{text!r} is not a retention rule: write a salience, project:NAME or event_type:NAME, then = and an "
                "age in days, weeks or years, such as NOISE=90d, project:demo=26w or event_type:chat=2y"
            )
        column = {"project": "project_name", "event_type": "event_type"}.get(found["kind"], "salience")
        value = found["value"] if found["kind"] else found["value"].upper()
        return cls(text, column, value, int(found["count"]) * _DAYS[found["unit"]])


def _rules(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    rules = tuple(RetentionRule.parse(text.strip()) for text in value.split(",") if text.strip())
    for one, other in itertools.combinations(rules, 2):
        if (one.column, one.value) == (other.column, other.value):
            raise ValueError(f"{one.text!r} and {other.text!r} are rules for the same memories: keep one of them")
    return rules


#: What a store may be called: its archive lies in a folder of that name.
STORE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def require_store_name(name: str) -> str:
    """Refuse a name that no folder of a store can have.

    Raises:
        ValueError: it is none; the message says what one looks like.
    """
    if not STORE_NAME.fullmatch(name):
        raise ValueError(
            "not a store's name: use letters, digits, '.', '_' and '-', at most 64, and begin with a letter or digit"
        )
    return name


def _names(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    return tuple(os.path.expanduser(name.strip()) for name in value.split(",") if name.strip())  # noqa: PTH111


class Settings(BaseSettings):
    """Where the tiers live and how the pipeline treats them.

    Every field can be set by an environment variable: its name in capitals with ``VIDURAI_`` before it.
    """

    model_config = SettingsConfigDict(env_prefix="VIDURAI_", frozen=True, env_ignore_empty=True)

    home: UserPath = Field(
        default=Path("~/.vidurai"),
        validate_default=True,
        description="Vidurai's folder. If only `VIDURAI_DB` is set, the folder of that file",
    )
    db: UserPath | None = Field(
        default=None,
        description="The hot store. By default `vidurai.db` in Vidurai's folder, or `memory.db` if only that exists",
    )
    archive: Place | None = Field(
        default=None,
        description="The folder of the cold archive, or its address in an object store, such as `s3://bucket/prefix`, "
        "`gs://bucket/prefix` or `az://account/container/prefix`. By default `archive` in Vidurai's folder",
    )
    store_name: Annotated[str, AfterValidator(require_store_name)] | None = Field(
        default=None,
        description="What this hot store is called where several share one archive, such as `alice`. Its archive is "
        "then the folder `store=alice` of `VIDURAI_ARCHIVE`, and of `VIDURAI_MIRROR`; queries and searches read the "
        "archives of all stores. By default the archive is for one store alone",
    )
    stores: str | None = Field(
        default=None,
        description="The hot stores of a team, for Dagster: a pattern of their files, such as "
        "`/home/*/.vidurai/vidurai.db`, or a file of lines `NAME,PATH`. Each gets a partition of the assets, a run "
        "each night, and the archive `store=NAME` in `VIDURAI_ARCHIVE`. By default there is one store, `VIDURAI_DB`",
    )
    stores_at_once: int = Field(
        default=4, gt=0, description="How many stores of `VIDURAI_STORES` Dagster works on at the same time"
    )
    stores_spread_minutes: int = Field(
        default=60,
        ge=0,
        le=720,
        description="Over how many minutes the runs of the stores are spread, from the time of their schedule on. Each "
        "store has its own time in between, the same every night. 0 requests all runs at once",
    )
    mirror: Place | None = Field(
        default=None,
        description="A folder on another disk, or an address in an object store, for a second copy of the archive. "
        "Memories leave the hot store only when both hold them, and `scrub --repair` heals one from the other. By "
        "default there is none",
    )
    cache_size: Size = Field(
        default="20GB",
        validate_default=True,
        description="Of an archive in an object store, files of this size in all stay on this machine for the next "
        "question; of several stores, of each one's archive. While a question is answered there may be more",
    )
    archive_key_file: UserPath | None = Field(
        default=None,
        description="Encrypts new archive files with the newest key of this file, which `vidurai-pipeline new-key` "
        "makes. Without its keys the files can't be read",
    )
    q_table: UserPath | None = Field(
        default=None, description="The Q-table. By default `q_table.json` in Vidurai's folder"
    )
    fleet_q_table: UserPath | None = Field(
        default=None,
        description="The Q-table that `vidurai-pipeline dream --fleet` makes from all stores of the archive. If it is "
        "set, Dagster makes it every day too. By default `fleet_q_table.json` in Vidurai's folder",
    )
    spark_master: str | None = Field(
        default=None,
        description="An Apache Spark master, such as `local[4]` or `spark://host:7077`, that counts the experiences of "
        "all stores for `dream --fleet`. It needs `vidurai-pipeline[spark]`. By default DuckDB counts them",
    )
    compression: Literal["snappy", "zstd"] = Field(default="snappy", description="How new Parquet files are compressed")
    rows_per_file: int = Field(
        default=50_000, gt=0, description="The most memories in one file. What waits beyond that goes into more files"
    )
    busy_timeout: float = Field(
        default=60.0, ge=0, description="Seconds to wait while another program holds the hot store's lock"
    )
    lock_timeout: float = Field(
        default=10.0, ge=0, description="Seconds to wait for another run of the pipeline to end"
    )
    vacuum: Vacuum = Field(
        default="off", description="How the hot store's free space is given back to the disk after a purge"
    )
    vacuum_share: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="Do a full vacuum only when at least this share of the hot store is free space",
    )
    wal_limit: Size = Field(
        default="256MB",
        validate_default=True,
        description="The purge pauses when the hot store's write-ahead log grows beyond this because another program "
        "keeps reading. If that lasts for `VIDURAI_BUSY_TIMEOUT`, the next run does the rest",
    )
    scrub_days: int = Field(
        default=30,
        ge=1,
        description="Every archived file is read again within this many days, a share of them each night",
    )
    retention: Annotated[tuple[RetentionRule, ...], NoDecode, BeforeValidator(_rules)] = Field(
        default=(),
        description="How long archived memories are kept, such as `NOISE=90d, LOW=2y, project:demo=1y, "
        "event_type:chat=26w`. `vidurai-pipeline expire` removes those that are older. If several rules fit a memory, "
        "the longest counts. By default everything is kept",
    )
    secrets_check: bool = Field(
        default=True, description="Whether the health check looks for credentials in newly archived memories"
    )
    restore_grace_days: float = Field(
        default=30.0,
        ge=0,
        description="For this many days a restored memory is not archived again, whatever its status",
    )
    memory_limit: Annotated[str, AfterValidator(_checked_memory)] = Field(
        default="1GB",
        description="The most memory that DuckDB may use: an amount, or a share of this machine's such as `50%`",
    )
    mcp_exclude_projects: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_names)] = Field(
        default=(),
        description="Names, paths or ids of projects, separated by commas, whose memories `vidurai-pipeline mcp` never "
        "shows to an assistant",
    )
    embed_model: str | None = Field(
        default=None,
        description="The model of the search by meaning: a folder with `model.onnx` and `tokenizer.json`, or the name "
        "of an installed package that holds them. By default that of `vidurai-pipeline[semantic]`",
    )
    embed_minutes: float = Field(
        default=10.0,
        ge=0,
        description="How long a nightly run may embed memories for the search by meaning. The next one goes on. 0 "
        "turns it off",
    )
    threads: int | None = Field(
        default=None, gt=0, description="How many threads DuckDB uses. By default one for each core"
    )
    reward_profile: RewardProfile = Field(
        default=Hyperparameters.reward_profile,
        description="What learning rewards most: a balance, few tokens (`cost_focused`), or nothing forgotten "
        "(`quality_focused`)",
    )
    alpha: float = Field(
        default=Hyperparameters.alpha,
        gt=0,
        le=1,
        description="Learning rate: how much of an error one experience corrects",
    )
    gamma: float = Field(
        default=Hyperparameters.gamma, ge=0, le=1, description="Discount: what a reward is worth one step later"
    )
    epsilon_max: float = Field(
        default=Hyperparameters.epsilon_max, ge=0, le=1, description="Share of random decisions when learning begins"
    )
    epsilon_min: float = Field(
        default=Hyperparameters.epsilon_min, ge=0, le=1, description="Share of random decisions that always remains"
    )
    epsilon_decay: float = Field(
        default=Hyperparameters.epsilon_decay,
        ge=0,
        allow_inf_nan=False,
        description="How fast that share falls with each episode",
    )
    schedule: str = Field(default="0 2 * * *", description="When the nightly run starts, as a cron line")
    timezone: Annotated[str | None, AfterValidator(_checked_zone)] = Field(
        default=None, description="The time zone of the schedules, such as `Europe/Paris`. By default this machine's"
    )
    health_schedule: str = Field(default="0 4 * * *", description="When all tiers are checked, as a cron line")
    care_schedule: str = Field(
        default="0 3 * * *", description="When archived files are read again and cared for, as a cron line"
    )
    fleet_schedule: str = Field(
        default="0 5 * * *",
        description="When the Q-table of all stores is made, as a cron line, if `VIDURAI_FLEET_Q_TABLE` is set",
    )
    stale_hours: float = Field(
        default=52.0,
        ge=0.02,
        description="The archive and the Q-table count as stale after this many hours without a run",
    )
    history_days: int = Field(default=365, gt=0, description="How many days Dagster keeps its records of finished runs")
    early_run: bool = Field(default=True, description="Whether a large backlog starts a run before the nightly one")
    early_run_rows: int = Field(
        default=20_000, ge=0, description="Start an early run when this many memories wait. 0 turns it off"
    )
    early_run_bytes: Size = Field(
        default="256MB",
        validate_default=True,
        description="Start an early run when the hot store has grown by this much since the last run. 0 turns it off",
    )
    early_run_free_disk: Size = Field(
        default="1GB",
        validate_default=True,
        description="Start an early run when free disk falls below this. 0 turns it off",
    )
    early_run_quiet: float = Field(
        default=60.0,
        ge=0,
        description="Start an early run only when nothing was written to the hot store for this many seconds",
    )
    alert_urls: SecretStr | None = Field(
        default=None,
        description="Where alerts go: one or more addresses in Apprise's form, such as "
        "`mailtos://user:password@example.org` or `slack://…`, separated by spaces or commas",
    )
    heartbeat_url: SecretStr | None = Field(
        default=None,
        description="An address that is called after each successful run of the nightly job (with `/start` when it "
        "begins, `/fail` when it fails), as healthchecks.io and similar services take it. With `VIDURAI_STORES`, it is "
        "called once a night, after every store had a successful run",
    )
    alert_link: str | None = Field(default=None, description="The address of Dagster's UI. Alerts then link to the run")

    @model_validator(mode="before")
    @classmethod
    def _live_beside_the_store(cls, values: dict[str, Any]) -> dict[str, Any]:
        """A store that was named alone keeps its archive beside it, not in the archive of another store."""
        if values.get("db") and not values.get("home"):
            with contextlib.suppress(ValueError):  # which the field itself explains
                values["home"] = _path(Path(values["db"])).parent
        return values

    @model_validator(mode="after")
    def _kept_apart(self) -> Self:
        return self.keep_apart()

    def keep_apart(self) -> Self:
        """Refuse a file or a folder that serves two purposes: what one of them writes would destroy the other.

        Raises:
            ValueError: there is one.
        """
        places = {
            "VIDURAI_DB": self.db_path,
            "VIDURAI_Q_TABLE": self.q_table_path,
            "VIDURAI_FLEET_Q_TABLE": self.fleet_q_table_path,
            "DAGSTER_HOME": self.dagster_home,
            "VIDURAI_ARCHIVE": self.archive_root,
        }
        if self.archive_key_file is not None:
            places["VIDURAI_ARCHIVE_KEY_FILE"] = self.archive_key_file
        for (name, path), (other, taken) in itertools.combinations(places.items(), 2):
            if _same_file(path, taken):
                raise ValueError(f"{name} and {other} both name {path}: each needs a place of its own")
        # Links are followed once for each: many stores are looked at every few minutes.
        dagsters = [Path(os.path.realpath(self.dagster_home), name) for name in DAGSTERS_OWN]
        sqlites = [Path(f"{os.path.realpath(self.db_path)}-{end}") for end in ("wal", "shm", "journal")]
        kept = {
            "VIDURAI_ARCHIVE": ([Path(os.path.realpath(self.archive_root))], "lies in the archive", "move it out"),
            "DAGSTER_HOME": (dagsters, "is kept for Dagster", "choose another"),
            "VIDURAI_DB": (sqlites, "is kept for SQLite", "choose another"),
        }
        mirror = {"VIDURAI_MIRROR": self.mirror} if isinstance(self.mirror, Path) else {}
        real = {name: Path(os.path.realpath(path)) for name, path in (places | mirror).items()}
        for (owner, (own, said, hint)), (name, path) in itertools.product(kept.items(), (places | mirror).items()):
            if name != owner and not {real[name], *real[name].parents}.isdisjoint(own):
                raise ValueError(f"{name}={path} {said}, {owner}={places[owner]}: {hint}")
        if isinstance(self.mirror, Path):
            for name, path in {**places, "VIDURAI_HOME": self.home}.items():
                if _same_file(self.mirror, path) or _is_within(self.mirror, path) or _is_within(path, self.mirror):
                    raise ValueError(
                        f"VIDURAI_MIRROR={self.mirror} and {name}={path}: one lies in the other; name a folder on "
                        "another disk"
                    )
        if isinstance(self.mirror, str) and isinstance(self.archive, str):
            one, other = f"{self.mirror}/", f"{self.archive}/"
            if one.startswith(other) or other.startswith(one):
                raise ValueError(
                    f"VIDURAI_MIRROR={self.mirror} and VIDURAI_ARCHIVE={self.archive}: one lies in the other; name "
                    "another bucket"
                )
        return self

    @property
    def db_path(self) -> Path:
        """The hot store: ``VIDURAI_DB``, else ``vidurai.db``, else ``memory.db`` if only that exists."""
        return self.db or store_in(self.home)

    @property
    def archive_root(self) -> Path:
        """The folder of the cold archive, or of the archives of several stores; of a bucket, the working copy."""
        if isinstance(self.archive, str):
            return self.working_copy(self.archive)
        return self.archive or self.home / "archive"

    def working_copy(self, address: str) -> Path:
        """The folder of this machine's working copy of an archive in an object store."""
        # The same address at another endpoint is another archive.
        place = f"{os.environ.get('AWS_ENDPOINT_URL', '')} {address}".strip()
        return self.home / "cache" / hashlib.sha256(place.encode()).hexdigest()[:16]

    @property
    def machine_path(self) -> Path:
        """The file that holds this machine's id, by which an archive in an object store knows it."""
        return self.home / "machine-id"

    @property
    def archive_path(self) -> Path:
        """The folder of this store's own archive."""
        return self._of_store(self.archive_root)

    @property
    def mirror_path(self) -> Path | None:
        """The folder of the second copy of this store's own archive, if there is to be one."""
        folder = self.working_copy(self.mirror) if isinstance(self.mirror, str) else self.mirror
        return folder and self._of_store(folder)

    @property
    def archive_address(self) -> str | None:
        """The address of this store's own archive, if it is in an object store."""
        return self._address_of_store(self.archive)

    @property
    def mirror_address(self) -> str | None:
        """The address of its second copy, if that is in an object store."""
        return self._address_of_store(self.mirror)

    def _address_of_store(self, place: Path | str | None) -> str | None:
        if isinstance(place, str) and self.store_name:
            return f"{place}/{store_folder(self.store_name)}"
        return place if isinstance(place, str) else None

    def _of_store(self, folder: Path) -> Path:
        return folder / store_folder(self.store_name) if self.store_name else folder

    @property
    def q_table_path(self) -> Path:
        """The file of the Q-table."""
        return self.q_table or self.home / "q_table.json"

    @property
    def fleet_q_table_path(self) -> Path:
        """The file of the Q-table of all stores."""
        return self.fleet_q_table or self.home / "fleet_q_table.json"

    @property
    def dagster_home(self) -> Path:
        """The folder of Dagster's settings and history: ``DAGSTER_HOME``, else ``dagster`` in Vidurai's folder."""
        named = os.environ.get("DAGSTER_HOME")
        if not named:
            return self.home / "dagster"
        try:
            return _path(Path(named))
        except ValueError as error:
            raise ValueError(f"DAGSTER_HOME={named!r}: {error}") from None


#: What Dagster puts into its home.
DAGSTERS_OWN = {"compute_logs", "dagster.yaml", "history", "logs", "schedules", "storage", "workspace.yaml"}


def _same_file(one: Path, other: Path) -> bool:
    """Whether two paths lead to the same place, by links of either kind too."""
    try:
        return os.path.realpath(one) == os.path.realpath(other) or one.samefile(other)
    except OSError:  # one of them is not there
        return False


def _is_within(path: Path, folder: Path) -> bool:
    """Whether a path, wherever its links lead, is a folder or lies in it."""
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


def store_folder(name: str) -> str:
    """The folder, in an archive of several stores, of the archive of one."""
    return f"store={name}"


def store_in(folder: Path) -> Path:
    """The hot store in a folder: ``vidurai.db``, or ``memory.db`` if only that exists."""
    current, legacy = folder / "vidurai.db", folder / "memory.db"
    return legacy if os.path.exists(legacy) and not os.path.exists(current) else current  # noqa: PTH110


_RETIRED = {
    f"VIDURAI_ALERT_{name}"
    for name in (
        *("EMAIL_TO", "EMAIL_FROM", "SMTP_HOST", "SMTP_PORT", "SMTP_SECURITY", "SMTP_USER", "SMTP_PASSWORD"),
        *("SLACK_TOKEN", "SLACK_CHANNEL", "WEBHOOK"),
    )
}


# Vidurai's own variables begin like the first two; the others are those of deploy/compose and docs/operations.md.
_READ_ELSEWHERE = (
    "VIDURAI_MULTI_AUDIENCE_",
    "VIDURAI_SEMANTIC_COMPRESSION_",
    *("VIDURAI_FOLDER", "VIDURAI_GID", "VIDURAI_PIPELINE_VERSION", "VIDURAI_PYTHON", "VIDURAI_UID"),
)


def unknown_variables() -> list[str]:
    """What to say of each ``VIDURAI_*`` variable that nothing reads: most of them are misspelt."""
    known = {name.upper() for name in Settings.model_fields}
    said = []
    for name in sorted(name for name, value in os.environ.items() if value and name.upper().startswith("VIDURAI_")):
        own = name.upper().removeprefix("VIDURAI_")
        if own in known or name in _RETIRED or name.startswith(_READ_ELSEWHERE):
            continue
        near = difflib.get_close_matches(own, known, n=1)
        said.append(
            f"{name} is not a setting" + (f": did you mean VIDURAI_{near[0]}?" if near else " and has no effect")
        )
    return said


def load_settings() -> Settings:
    """Read the settings from the environment.

    Raises:
        ConfigError: a variable holds a value that can't be used; the message names it.
    """
    if old := sorted(_RETIRED & {name for name, value in os.environ.items() if value}):
        raise ConfigError(
            f"{', '.join(old)}: no longer used",
            "unset this, and set VIDURAI_ALERT_URLS instead, to an address such as "
            "mailtos://USER:PASSWORD@HOST?from=SENDER&to=RECIPIENT, slack://TOKEN/#CHANNEL or jsons://HOST/PATH; see "
            "https://appriseit.com/services",
        )
    try:
        return Settings()
    except ValidationError as error:
        raise ConfigError(explained(error)) from None


def explained(error: ValidationError) -> str:
    """Say in one line what is wrong with settings."""
    said = []
    for fault in error.errors():
        message = fault["msg"].removeprefix("Value error, ")
        if fault["loc"]:  # a fault of one setting alone
            shown = re.sub(r"://[^/@]*@", "://…@", str(fault["input"]))
            message = f"VIDURAI_{str(fault['loc'][0]).upper()}={shown!r}: {message}"
        said.append(message)
    return "; ".join(said)
