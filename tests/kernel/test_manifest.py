"""The manifest of a guest, and the recipe that it is compared with."""

from __future__ import annotations

import json
import re

import pytest

from migrate_vma_conformance.kernel.building import recipe
from migrate_vma_conformance.kernel.building.manifest import (
    Manifest,
    Product,
    Unreadable,
    products_of,
    read_manifest,
    write_manifest,
)
from migrate_vma_conformance.kernel.guests import DEFAULT, KINDS
from migrate_vma_impl.generations import GENERATIONS
from tests.kernel.toolbox import MODULE


def manifest(**changes):
    told = {
        "name": "6.1",
        "generation": "referenced",
        "release": "6.1.0-fake",
        "source": "linux-source-6.1 6.1.0-1",
        "source_sha256": "00",
        "inputs": {"agent.c": "11"},
        "tools": {"gcc": "gcc 12"},
        "seconds": {"kernel": 12.5},
        "built": "2026-01-02T03:04:05+00:00",
        "products": {"kernel": Product("22", 9)},
    }
    return Manifest(**{**told, **changes})


def test_a_manifest_reads_as_it_was_written(tmp_path):
    write_manifest(tmp_path, manifest())
    assert read_manifest(tmp_path) == manifest()
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"]


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"format": 1}', '{"format": 1, "products": 3}', "\ud800"])
def test_what_is_no_manifest_is_unreadable(tmp_path, text):
    (tmp_path / "manifest.json").write_text(text, errors="surrogatepass")
    with pytest.raises(Unreadable, match="its manifest cannot be read"):
        read_manifest(tmp_path)


def test_a_manifest_of_another_format_is_unreadable(tmp_path):
    write_manifest(tmp_path, manifest())
    told = json.loads((tmp_path / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps({**told, "format": 2}))
    with pytest.raises(Unreadable, match="another format"):
        read_manifest(tmp_path)


def test_products_are_known_by_size_and_by_hash(tmp_path):
    (tmp_path / "kernel").write_text("a kernel")
    written = manifest(products=products_of(tmp_path, ["kernel"]))
    written.check_hashes(tmp_path)
    (tmp_path / "kernel").write_text("b kernel")
    written.check_sizes(tmp_path)
    with pytest.raises(Unreadable, match="kernel is not what was built: its hash differs"):
        written.check_hashes(tmp_path)
    (tmp_path / "kernel").write_text("a kern")
    with pytest.raises(Unreadable, match="kernel has 6 bytes where 8 were built"):
        written.check_sizes(tmp_path)
    (tmp_path / "kernel").unlink()
    with pytest.raises(Unreadable, match="kernel is missing"):
        written.check_sizes(tmp_path)


@pytest.mark.parametrize("fragment", sorted(path.name for path in recipe.SOURCES.glob("*.config")))
def test_a_fragment_has_comments_and_settings_each_once(fragment):
    lines = (recipe.SOURCES / fragment).read_text().splitlines()
    assert [line for line in lines if line and not re.fullmatch(r"#.*|CONFIG_[A-Z0-9_]+=(y|m|\d+)", line)] == []
    symbols = [line.partition("=")[0] for line in lines if line.startswith("CONFIG_")]
    assert len(symbols) == len(set(symbols)) > 0


@pytest.mark.parametrize("kind", KINDS.values(), ids=str)
def test_every_guest_has_device_memory_swap_and_probes(kind):
    asked = recipe.settings(kind.fragments)
    wanted = ("CONFIG_DEVICE_PRIVATE", "CONFIG_SWAP", "CONFIG_TRANSPARENT_HUGEPAGE", "CONFIG_KPROBE_EVENTS", "CONFIG_USERFAULTFD")
    assert {symbol: asked.get(symbol) for symbol in wanted} == dict.fromkeys(wanted, "y")
    assert asked["CONFIG_TEST_HMM"] == "m"


def test_a_guest_is_what_its_name_says():
    debug = {name for name, kind in KINDS.items() if "CONFIG_DEBUG_VM" in recipe.settings(kind.fragments)}
    kasan = {name for name, kind in KINDS.items() if "CONFIG_KASAN" in recipe.settings(kind.fragments)}
    assert (debug, kasan) == ({"6.1-debug", "7.3-debug", "7.3-kasan"}, {"7.3-kasan"})
    assert all(kind.package.endswith(kind.name.partition("-")[0]) for kind in KINDS.values())


def test_the_two_plain_guests_have_generations_of_the_simulated_kernel_that_differ():
    generations = [KINDS[name].generation for name in DEFAULT]
    assert len({*generations}) == len(DEFAULT) == 2
    assert {kind.generation for kind in KINDS.values()} <= set(GENERATIONS)


def test_a_comment_of_a_fragment_changes_no_guest(tmp_path, monkeypatch):
    before = recipe.kernel_inputs("linux-source-6.1", ("base.config",))
    text = (recipe.SOURCES / "base.config").read_text()
    monkeypatch.setattr(recipe, "SOURCES", tmp_path)
    (tmp_path / "base.config").write_text(f"# another comment\n{text}")
    assert recipe.kernel_inputs("linux-source-6.1", ("base.config",)) == before
    (tmp_path / "base.config").write_text(f"{text}CONFIG_KSM=y\n")
    assert recipe.kernel_inputs("linux-source-6.1", ("base.config",)) != before


def test_the_later_fragment_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(recipe, "SOURCES", tmp_path)
    (tmp_path / "a").write_text("CONFIG_X=y\nCONFIG_Y=3\n")
    (tmp_path / "b").write_text("CONFIG_X=n\n")
    assert recipe.settings(("a", "b")) == {"CONFIG_X": "n", "CONFIG_Y": "3"}


def test_what_a_kernel_does_not_heed_is_found():
    wanted = {"CONFIG_A": "y", "CONFIG_B": "n", "CONFIG_C": "3", "CONFIG_D": "y"}
    assert recipe.unheeded(wanted, "CONFIG_A=y\n# CONFIG_B is not set\nCONFIG_C=4\n") == ["CONFIG_C=3", "CONFIG_D=y"]


def test_the_edit_is_of_one_line_of_one_function():
    edited = recipe.mended(MODULE)
    assert edited == MODULE.replace("{\n\tentry = page;\n\treturn 0;", f"{{\n\t{recipe.MENDED_LINE}\n\treturn 0;")
    assert edited.count("is_device_private_page") == 1


@pytest.mark.parametrize("module", ["", MODULE.replace("do_fault", "do_else"), MODULE.replace("return 0;", recipe.MODULE_LINE)])
def test_a_module_that_is_not_as_it_was_is_not_edited(module):
    with pytest.raises(recipe.NotEdited, match="does not have the one line that is mended there"):
        recipe.mended(module)
