from __future__ import annotations

import ast
import inspect
from collections.abc import Callable
from pathlib import Path

import pytest

from dcprune import hookspecs, plugins
from dcprune.errors import OptionError, PluginError, UnknownName

Install = Callable[[str, str], None]

GOOD = """
import dcprune

@dcprune.hookimpl
def register_scorers(register):
    register("norm", "dcprune_good:Norm", summary="length of the embedding")

class Norm:
    keep = "highest"
    per_class = True

    def __init__(self, power: float = 2.0, offset: int = 0):
        self.power, self.offset = power, offset

    def score(self, embeddings, context):
        import numpy as np
        return np.linalg.norm(embeddings.embeddings[:], ord=self.power, axis=1) + float(self.offset)
"""
BACKENDS = """
import dcprune

PRESETS = {"paper": 1, "huge": 2}

@dcprune.hookimpl
def register_backends(register):
    register("own", "dcprune_own:Own")
    register("light", "dcprune_own:Absent", presets="dcprune_own:PRESETS")

class Own:
    presets = {"paper": 1}
"""
BROKEN = "raise RuntimeError('no such driver')"


def test_a_plugin_is_found_through_its_entry_point(install_plugin: Install) -> None:
    install_plugin("dcprune-good", GOOD)
    item, argument = plugins.registry().get("scorer", "norm")
    assert (item.package, item.version, argument) == ("dcprune-good", "1.2", "")
    assert ("dcprune-good", "1.2") in plugins.registry().versions()


def test_settings_are_converted_to_the_annotated_types(install_plugin: Install) -> None:
    install_plugin("dcprune-good", GOOD)
    made = plugins.registry().create("scorer", "norm", {"power": "1.5", "offset": "3"})
    assert (made.power, made.offset) == (1.5, 3)
    with pytest.raises(OptionError, match="offset='x'"):
        plugins.registry().create("scorer", "norm", {"offset": "x"})
    with pytest.raises(UnknownName, match="Did you mean 'power'"):
        plugins.registry().create("scorer", "norm", {"powr": "2"})


def test_a_plugin_that_raises_at_import_stops_nobody_else(install_plugin: Install) -> None:
    install_plugin("dcprune-broken", BROKEN)
    install_plugin("dcprune-good", GOOD)
    found = plugins.registry()
    assert found.get("scorer", "norm")
    (failure,) = found.failures
    assert "no such driver" in str(failure)
    assert "pip uninstall dcprune-broken" in str(failure)


def test_a_broken_plugin_is_named_when_a_name_is_unknown(install_plugin: Install) -> None:
    install_plugin("dcprune-broken", BROKEN)
    with pytest.raises(UnknownName, match="dcprune-broken"):
        plugins.registry().get("scorer", "from-the-broken-one")


def test_strict_plugins_make_a_failure_fatal(install_plugin: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    install_plugin("dcprune-broken", BROKEN)
    monkeypatch.setenv("DCPRUNE_STRICT_PLUGINS", "1")
    with pytest.raises(PluginError, match="no such driver"):
        plugins.registry()


@pytest.mark.parametrize(("admitted", "present"), [("", False), ("dcprune-good", True), ("other", False)])
def test_loading_can_be_limited(
    install_plugin: Install, monkeypatch: pytest.MonkeyPatch, admitted: str, present: bool
) -> None:
    install_plugin("dcprune-good", GOOD)
    monkeypatch.setenv("DCPRUNE_LOAD_PLUGINS", admitted)
    assert ("norm" in plugins.registry().names("scorer")) is present
    assert bool(plugins.registry().failures) is (admitted == "other")


def test_a_builtin_name_cannot_be_taken(install_plugin: Install) -> None:
    install_plugin("dcprune-good", GOOD.replace('"norm"', '"moderate"'))
    item, _ = plugins.registry().get("scorer", "moderate")
    assert item.package == "dcprune"
    assert "refused" in str(plugins.registry().failures[0])


def test_an_item_that_does_not_load_says_whose_it_is(install_plugin: Install) -> None:
    install_plugin("dcprune-good", GOOD.replace("dcprune_good:Norm", "dcprune_good:Absent"))
    with pytest.raises(PluginError, match=r"dcprune-good 1\.2.*Absent.*pip uninstall dcprune-good"):
        plugins.registry().create("scorer", "norm", {})


def test_an_argument_follows_a_colon() -> None:
    item, argument = plugins.registry().get("metric", "fd:resnet18")
    assert (item.name, argument) == ("fd", "resnet18")
    with pytest.raises(OptionError, match="fd:ENCODER"):
        plugins.registry().get("metric", "fd")
    with pytest.raises(UnknownName):
        plugins.registry().get("metric", "fid:clean")


def test_every_hook_is_documented_and_used_by_a_plugin_of_our_own() -> None:
    hooks = {name: hook for name, hook in inspect.getmembers(hookspecs, inspect.isfunction) if name.startswith("reg")}
    assert set(hooks) == {f"register_{kind}s" for kind in plugins.KINDS}
    assert all(hook.__doc__ for hook in hooks.values())
    assert all(plugins.registry().names(kind) for kind in plugins.KINDS)


@pytest.mark.parametrize("kind", plugins.KINDS)
def test_every_builtin_loads_and_has_a_summary(kind: str) -> None:
    found = plugins.registry()
    for name in found.names(kind):
        item = found.items[kind, name]
        if item.package == "dcprune":
            assert item.summary
            assert callable(item.load())


def test_presets_that_are_registered_on_their_own_are_those_of_the_backend() -> None:
    found = plugins.registry()
    for name, presets in found.presets().items():
        item, _ = found.get("backend", name)
        assert item.load_presets() is item.load().presets  # type: ignore[attr-defined]
        assert presets == list(item.load_presets())
    assert {"ddpm", "edm"} <= set(found.presets())


def test_a_backend_of_a_plugin_may_keep_its_presets_in_its_class(install_plugin: Install) -> None:
    install_plugin("dcprune-own", BACKENDS)
    found = plugins.registry()
    assert list(found.get("backend", "own")[0].load_presets()) == ["paper"]
    assert "own" not in found.presets()
    assert found.presets()["light"] == ["paper", "huge"]


PUBLIC = ("", ".artifacts", ".errors", ".hookspecs", ".interfaces", ".parts", ".presets", ".testing")


def test_our_own_packages_use_what_anybody_may() -> None:
    sources = sorted((Path(__file__).parents[1] / "plugins").glob("*/dcprune_*/*.py"))
    assert len(sources) > 5
    for source in sources:
        found = [each for each in ast.walk(ast.parse(source.read_text())) if isinstance(each, ast.ImportFrom)]
        used = {each.module or "" for each in found if (each.module or "").split(".")[0] == "dcprune"}
        assert used <= {f"dcprune{name}" for name in PUBLIC}, source
