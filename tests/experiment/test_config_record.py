"""The configuration record: nested values as YAML has them, and names of older versions."""

from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import ClassVar, get_type_hints

import pytest
import yaml

from agents.imitation_config import ImitationConfig
from agents.online_config import DreamerRunConfig, OnlineConfig
from errors import UserError
from experiment.config_record import (
    ANY,
    ConfigRecord,
    current_names,
    flat,
    names_loaded,
    plain,
    with_defaults,
)


@dataclass(frozen=True)
class Layer:
    units: int = 8
    bias: bool = True

    RENAMED: ClassVar = {"neurons": "units"}


@dataclass(frozen=True)
class Network:
    layer: Layer = field(default_factory=Layer)
    depth: int = 2
    rates: tuple[float, ...] = (1e-3, 1.0)
    folder: Path | None = None

    RENAMED: ClassVar = {"blocks": "depth", "part": "layer"}
    REMOVED: ClassVar = {"dropout": (0.0, None), "order": ANY}


@dataclass(frozen=True)
class Run:
    task: str = "metaworld/reach"
    seed: int = 3
    updates: int = 100
    workers: int = 1
    network: Network = field(default_factory=Network)

    MAY_GROW: ClassVar = "updates"
    MAY_CHANGE: ClassVar = frozenset({"workers", "network.layer.bias"})


NOW = {
    "task": "metaworld/reach",
    "seed": 3,
    "updates": 100,
    "workers": 1,
    "network": {
        "layer": {"units": 8, "bias": True},
        "depth": 2,
        "rates": [1e-3, 1.0],
        "folder": None,
    },
}


def old_names(**removed):
    """`NOW` as an older version wrote it, with options that have left."""
    network = {"part": {"neurons": 8, "bias": True}, "blocks": 2, "rates": [1e-3, 1.0]}
    return NOW | {"network": network | {"folder": None} | removed}


@pytest.fixture
def record(tmp_path):
    return ConfigRecord(tmp_path / "config.yaml")


def write(record, config):
    record.path.write_text(yaml.safe_dump({"config": config, "command": "python run.py old"}))


# ------------------------------------------------------------------------------ nested values


def test_plain_is_what_yaml_gives_back():
    config = Run(network=Network(rates=(2.0,), folder=Path("a") / "b"))
    wanted = NOW | {"network": NOW["network"] | {"rates": [2.0], "folder": "a/b"}}
    assert plain(config) == wanted == yaml.safe_load(yaml.safe_dump(plain(config)))
    assert plain(Run()) == NOW


def test_plain_reaches_into_lists_and_dicts():
    @dataclass(frozen=True)
    class Holder:
        parts: dict
        layers: tuple

    holder = Holder({"first": Layer(), "sizes": (1, (2, 3))}, (Layer(units=5),))
    assert plain(holder) == {
        "parts": {"first": {"units": 8, "bias": True}, "sizes": [1, [2, 3]]},
        "layers": [{"units": 5, "bias": True}],
    }


def test_flat_names_are_dotted():
    assert flat({"a": {"b": {"c": 1, "d": [2]}, "e": None}, "f": 3}) == {
        "a.b.c": 1,
        "a.b.d": [2],
        "a.e": None,
        "f": 3,
    }
    assert flat({}) == {}
    assert list(flat(NOW)) == [
        "task",
        "seed",
        "updates",
        "workers",
        "network.layer.units",
        "network.layer.bias",
        "network.depth",
        "network.rates",
        "network.folder",
    ]


def test_defaults_fill_what_is_missing_at_every_depth_and_nothing_else():
    given = {"task": "a/b", "network": {"layer": {"units": 5}, "unknown": 1}}
    before = yaml.safe_dump(given)
    layer = {"units": 5, "bias": True}
    assert with_defaults(given, Run) == NOW | {
        "task": "a/b",
        "network": NOW["network"] | {"layer": layer, "unknown": 1},
    }
    assert yaml.safe_dump(given) == before
    assert with_defaults({}, Run) == NOW


# ------------------------------------------------------------------------- names of older versions


def test_names_that_have_not_changed_stay():
    assert current_names(NOW, Run) == (NOW, {})


def test_old_names_become_those_of_now_at_every_depth_a_renamed_section_included():
    given = old_names(dropout=0.0)
    before = yaml.safe_dump(given)
    assert current_names(given, Run) == (NOW, {})
    assert yaml.safe_dump(given) == before


@pytest.mark.parametrize("harmless", [{"dropout": 0.0}, {"dropout": None}, {"order": "any"}, {}])
def test_a_removed_option_is_dropped_where_it_meant_what_is_done_now(harmless):
    assert current_names(old_names(**harmless), Run) == (NOW, {})


def test_a_removed_option_that_meant_something_else_is_reported_by_its_dotted_name():
    current, lost = current_names(old_names(dropout=0.1, order=2), Run)
    assert current == NOW
    assert lost == {"network.dropout": 0.1}


def test_what_no_version_knew_is_kept_for_the_refusal():
    current, lost = current_names(NOW | {"colour": "red"}, Run)
    assert current == NOW | {"colour": "red"}
    assert lost == {}


# ------------------------------------------------------------------------------ load and resume


def test_old_names_load(record):
    write(record, old_names(dropout=None, order=[1, 2]))
    assert record.load(Run) == Run()
    network = old_names()["network"]
    network |= {"blocks": 7, "part": {"neurons": 16}}  # `bias` is younger than this run
    write(record, NOW | {"network": network})
    assert record.load(Run) == Run(network=Network(Layer(units=16), depth=7))


def test_a_created_record_loads(record):
    assert not record.exists
    config = Run(network=Network(Layer(5, False), 3, (0.5,)), seed=9)
    record.create(config)
    assert record.exists
    assert record.load(Run) == config
    assert {"config", "command", "commit", "versions", "hardware"} == record.read().keys()


@pytest.mark.parametrize("use", [lambda r: r.load(Run), lambda r: r.resume(Run(updates=200))])
def test_a_lost_option_is_refused_by_name_and_nothing_changes(record, use):
    write(record, old_names(dropout=0.1))
    before = record.path.read_bytes()
    with pytest.raises(UserError, match=r"network\.dropout = 0\.1.*no longer offers") as error:
        use(record)
    assert "\n" not in str(error.value)
    assert record.path.read_bytes() == before


def test_resuming_an_old_record_compares_and_writes_in_the_names_of_now(record):
    write(record, old_names(dropout=0.0))
    with pytest.raises(UserError, match=r"with network\.depth = 2, which now is 5"):
        record.resume(Run(network=Network(depth=5)))
    assert record.read()["config"] == old_names(dropout=0.0)
    record.resume(Run())
    assert record.read()["config"] == NOW
    assert record.load(Run) == Run()


def test_the_growing_field_may_grow_and_not_shrink(record):
    write(record, NOW)
    record.resume(Run(updates=150))
    assert record.load(Run).updates == 150
    with pytest.raises(UserError, match="updates = 150, more than the 149 asked for"):
        record.resume(Run(updates=149))


def test_fields_that_change_no_result_may_change_and_others_may_not(record):
    write(record, NOW)
    config = Run(workers=4, network=Network(Layer(bias=False)))
    record.resume(config)
    assert record.load(Run) == config
    assert record.read()["command"] != "python run.py old"  # the one that gives the whole run
    for wrong in (Run(seed=4), Run(network=Network(Layer(units=9)))):
        with pytest.raises(UserError, match="--logdir|choose another"):
            record.resume(wrong)
    assert record.load(Run) == config


def test_resuming_with_nothing_new_leaves_the_file_alone(record):
    write(record, NOW)
    before = record.path.read_bytes()
    record.resume(Run())
    assert record.path.read_bytes() == before


# ------------------------------------------------------------------- what a record would load


def after_colon(text):
    return (text,) if ":" in text else ()


@dataclass(frozen=True)
class Plugin:
    kind: str = "built-in"

    LOADS: ClassVar = {"kind": after_colon}
    RENAMED: ClassVar = {"sort": "kind"}


@dataclass(frozen=True)
class Other:
    weights: str = ""

    LOADS: ClassVar = {"weights": after_colon}


@dataclass(frozen=True)
class Pluggable:
    task: str = "metaworld/reach"
    plugin: Plugin = field(default_factory=Plugin)
    either: Plugin | Other = field(default_factory=Plugin)
    steps: int = 1


@pytest.mark.parametrize(
    ("recorded", "where"),
    [
        ({"plugin": {"kind": "a:B"}}, "plugin.kind"),
        ({"plugin": {"sort": "a:B"}}, "plugin.kind"),
        ({"either": {"kind": "a:B"}}, "either.kind"),
        ({"either": {"weights": "a:B"}}, "either.weights"),
    ],
)
def test_what_a_record_would_load_is_refused_until_it_is_trusted(record, recorded, where):
    write(record, recorded)
    for trusted in ((), ("a",), ("a:B ",)):
        with pytest.raises(UserError, match=rf"asks to load a:B \({where}\).* add --trust a:B$"):
            record.load(Pluggable, trusted)
    assert "a:B" in str(record.load(Pluggable, ("c:D", "a:B")))


@pytest.mark.parametrize("kind", ["built-in", None, ["a:B"], {"a:B": 1}, 3])
def test_what_loads_nothing_needs_no_trust(record, kind):
    write(record, {"plugin": {"kind": kind}})
    if kind == "built-in":
        assert record.load(Pluggable) == Pluggable()
    else:
        with pytest.raises(UserError, match="plugin.kind is .*; it must be text"):
            record.load(Pluggable)


def test_what_a_user_asks_for_they_have_named():
    assert names_loaded(Pluggable()) == set()
    assert names_loaded(Pluggable(plugin=Plugin("a:B"), either=Other("c:D"))) == {"a:B", "c:D"}


@pytest.mark.parametrize("steps", [None, "many", True, 1.5, [1]])
def test_a_run_cannot_be_gone_on_with_from_a_length_that_is_none(record, steps):
    write(record, NOW | {"updates": steps})
    before = record.path.read_bytes()
    with pytest.raises(UserError, match="updates is .*no whole number"):
        record.resume(Run())
    assert record.path.read_bytes() == before


def test_a_record_that_lacks_a_field_is_another_run(record):
    write(record, {name: value for name, value in NOW.items() if name != "network"})
    assert record.load(Run) == Run()
    write(record, {"updates": 100, "task": "a", "network": None})
    with pytest.raises(UserError, match="was started with task = a, which now is metaworld/reach"):
        record.resume(Run())
    write(record, NOW | {"network": "none"})
    with pytest.raises(UserError, match=r"was started without network\.layer\.units"):
        record.resume(Run())


# ----------------------------------------------------------------- the toolkit's configurations

ONLINE = OnlineConfig(task="metaworld/reach")
DREAMER = DreamerRunConfig(task="metaworld/reach")
IMITATION = ImitationConfig(data=("demos.hdf5",), task="libero/object")

RENAMED = [
    (ONLINE, "agent.autoencoder.still_speed", "agent.autoencoder.static_image_lr_scale", 20.0),
    (IMITATION, "agent.history", "agent.n_obs_steps", 2),
    (IMITATION, "agent.averaging", "agent.ema_decay", 0.5),
    (IMITATION, "agent.policy.euler_steps", "agent.policy.num_inference_steps", 3),
    (IMITATION, "agent.policy.execute", "agent.policy.n_action_steps", 4),
]
REMOVED = [
    (ONLINE, "agent.autoencoder.reward_from", "token", "last_patch"),
    (ONLINE, "agent.autoencoder.scale_target", False, True),
    (ONLINE, "agent.dynamics.kl_clip", "mean", "step"),
    (ONLINE, "agent.dynamics.rssm.input_activation", False, True),
    (ONLINE, "agent.behaviour.mean", "tanh", "clipped"),
    (ONLINE, "agent.behaviour.mean", "tanh", "clipped_tanh"),
    (ONLINE, "agent.behaviour.scale_returns", False, True),
    (ONLINE, "agent.autoencoder_window", 1, 4),
    (IMITATION, "agent.dynamics.history_noise", 0.0, 0.1),
]


def put(nested, name, value):
    *path, last = name.split(".")
    for key in path:
        nested = nested[key]
    nested[last] = value


def take(nested, name):
    *path, last = name.split(".")
    for key in path:
        nested = nested[key]
    return nested.pop(last)


def ids(cases):
    return [f"{name}={value}" for _, name, _, value in cases]


@pytest.mark.parametrize(("config", "old", "new", "value"), RENAMED, ids=ids(RENAMED))
def test_an_old_name_is_read_as_the_option_is_called_now(record, config, old, new, value):
    recorded = plain(config)
    assert take(recorded, new) != value  # that the default is not what makes it pass
    put(recorded, old, value)
    current, lost = current_names(recorded, type(config))
    assert not lost
    assert flat(current) == flat(plain(config)) | {new: value}
    write(record, recorded)
    assert flat(plain(record.load(type(config))))[new] == value


@pytest.mark.parametrize(("config", "name", "harmless", "other"), REMOVED, ids=ids(REMOVED))
def test_an_option_that_left_is_read_where_it_changed_nothing(
    record, config, name, harmless, other
):
    recorded = plain(config)
    put(recorded, name, harmless)
    write(record, recorded)
    assert record.load(type(config)) == config
    put(recorded, name, other)
    assert current_names(recorded, type(config)) == (plain(config), {name: other})
    write(record, recorded)
    with pytest.raises(UserError, match=f"{name} = {other}"):
        record.load(type(config))


@pytest.mark.parametrize("value", [True, False, "auto"])
def test_the_order_in_which_an_update_was_computed_is_read_whatever_it_was(value):
    recorded = plain(ONLINE)
    put(recorded, "agent.overlap", value)
    assert current_names(recorded, OnlineConfig) == (plain(ONLINE), {})


def every_class(config_class):
    """A configuration's class and those of its sections, at any depth."""
    yield config_class
    for kind in get_type_hints(config_class).values():
        if is_dataclass(kind):
            yield from every_class(kind)


@pytest.mark.parametrize("config_class", [OnlineConfig, ImitationConfig])
def test_new_names_are_fields_and_names_that_left_are_not(config_class):
    classes = list(every_class(config_class))
    assert any(hasattr(part, "RENAMED") for part in classes)
    assert any(hasattr(part, "REMOVED") for part in classes)
    for part in classes:
        names = {entry.name for entry in fields(part)}
        renamed, removed = getattr(part, "RENAMED", {}), getattr(part, "REMOVED", {})
        assert set(renamed.values()) <= names
        assert not (renamed.keys() | removed.keys()) & names
        assert not renamed.keys() & removed.keys()
        for harmless in removed.values():
            # A lone string would be searched for letters.
            assert harmless is ANY or isinstance(harmless, tuple)


@pytest.mark.parametrize("config", [ONLINE, DREAMER, IMITATION])
def test_fields_that_may_change_or_grow_are_there(config):
    names = flat(plain(config)).keys()
    assert set(type(config).MAY_CHANGE) <= names
    assert getattr(config, "MAY_GROW", "steps") in names


def test_the_toolkits_configurations_come_back_equal(record):
    for config in (ONLINE, replace(ONLINE, recorded=("runs/a",), seed=5), DREAMER, IMITATION):
        record.path.unlink(missing_ok=True)
        record.create(config)
        assert record.load(type(config)) == config
