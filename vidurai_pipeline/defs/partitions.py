"""For which of several stores a run is."""

import dagster as dg

from vidurai_pipeline.errors import ConfigError
from vidurai_pipeline.hot.stores import find_stores
from vidurai_pipeline.settings import Settings

#: A partition for each store that ``VIDURAI_STORES`` names.
STORES = dg.DynamicPartitionsDefinition(name="stores")
#: Names the store of a run whose job has no partitions.
STORE_TAG = "vidurai/store"
_PARTITION_TAG = "dagster/partition"


def store_of(run: dg.DagsterRun | None) -> str | None:
    """The store that a run is for; None where there is only one."""
    tags = run.tags if run else {}
    return tags.get(STORE_TAG) or tags.get(_PARTITION_TAG)


def tags_of(store: str | None) -> dict[str, str]:
    """The tags by which a store's runs of partitioned jobs are found; of the only store's there are none."""
    return {} if store is None else {_PARTITION_TAG: store}


def registered(settings: Settings, instance: dg.DagsterInstance) -> dict[str | None, Settings]:
    """The settings of each store that has a partition and can be used; those of the only store by None."""
    if settings.stores is None:
        return {None: settings}
    known = set(instance.get_dynamic_partitions(str(STORES.name)))
    return {name: own for name, own in find_stores(settings).stores.items() if name in known}


def settings_of(settings: Settings, run: dg.DagsterRun | None) -> Settings:
    """The settings of the store that a run is for.

    Raises:
        ConfigError: there are several stores, and the run names none of them, or one that can't be used.
    """
    if settings.stores is None:
        return settings
    name = store_of(run)
    if name is None:
        raise ConfigError("this run is for no store", hint=f"choose a partition, or add the tag {STORE_TAG}")
    return find_stores(settings, name).settings_of(name)
