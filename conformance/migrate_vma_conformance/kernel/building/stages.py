"""The stages in which a guest is built, each from what the ones before left.

Rules:
- A stage can be run again over what a broken run of itself left: it begins afresh, or make goes on where it was.
- The source is as the package has it. What we change stands beside it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

from attrs import asdict, frozen

from migrate_vma_conformance.kernel.building import initrd, recipe
from migrate_vma_conformance.kernel.building.packages import SourceArchive, fetched_source, installed_source
from migrate_vma_conformance.kernel.building.progress import Step, Told, compiled
from migrate_vma_conformance.kernel.building.running import Runner
from migrate_vma_conformance.kernel.guests import INITRD, KERNEL, GuestKind

STOCK_MODULE = "test_hmm.ko"
MENDED_MODULE = "test_hmm-mended.ko"
HMM_TESTS = "hmm-tests"
CONFIGURATION = "config"
HEADERS = ("test_hmm_uapi.h", "gup_test.h")
"""What the agent says to the module and to the test of pinning, as this kernel has it."""
PRODUCTS = (KERNEL, INITRD, CONFIGURATION, STOCK_MODULE, MENDED_MODULE, HMM_TESTS, *HEADERS)

_MACHINE = "ARCH=x86_64"
_STAMP = {
    "KBUILD_BUILD_USER": "migrate-vma",
    "KBUILD_BUILD_HOST": "guest",
    "KBUILD_BUILD_TIMESTAMP": "Thu Jan  1 00:00:00 UTC 1970",
}
"""The same source and configuration give the same kernel, byte for byte."""
_SELFTESTS = Path("tools/testing/selftests")


class NotConfigured(Exception):
    """The kernel does not heed a setting. The message is a sentence without its end."""


@frozen
class Site:
    """Where one guest is built, and with what. `out` is what becomes the guest's directory."""

    kind: GuestKind
    work: Path
    runner: Runner
    jobs: int
    tell: Callable[[str, int], None]

    @property
    def source(self) -> Path:
        return self.work / "source"

    @property
    def tree(self) -> Path:
        return self.work / "tree"

    @property
    def out(self) -> Path:
        return self.work / "out"

    def make(self, *words: str, **variables: str) -> None:
        """Have kbuild make something."""
        files = 0

        def follow(line: str) -> None:
            nonlocal files
            file = compiled(line)
            if file is not None:
                files += 1
                self.tell(file, files)

        command = ["make", f"--directory={self.source}", f"O={self.tree}", _MACHINE, f"--jobs={self.jobs}", *words]
        self.runner.run(command, self.work, follow, **_STAMP, **variables)


def unpack(site: Site) -> None:
    """The package's source, unpacked."""
    kind, packages, partial = site.kind, site.work / "packages", site.work / "source.partial"
    for left in (packages, partial, site.source):
        shutil.rmtree(left, ignore_errors=True)
    archive = installed_source(kind.package, site.runner)
    if archive is None:
        site.tell("from Debian's archive", 0)
        archive = fetched_source(kind.package, kind.suites, site.runner, packages)
    partial.mkdir()
    words = ["tar", "--extract", f"--file={archive.path}", f"--directory={partial}", "--strip-components=1"]
    site.runner.run(words, site.work)
    shutil.rmtree(packages, ignore_errors=True)
    (site.work / "archive.json").write_text(json.dumps(asdict(archive, value_serializer=lambda _, __, value: _plain(value))))
    partial.rename(site.source)


def _plain(value: object) -> object:
    return str(value) if isinstance(value, Path) else value


def archive_of(site: Site) -> SourceArchive:
    """The archive that the source was unpacked from."""
    told = json.loads((site.work / "archive.json").read_text())
    return SourceArchive(Path(told["path"]), told["origin"], told["sha256"])


def configure(site: Site) -> None:
    """The configuration: what the fragments ask for, and of all else as little as the kernel lets one have.

    Raises:
        NotConfigured: the kernel does not heed what a fragment asks.
    """
    wanted = recipe.settings(site.kind.fragments)
    asked = site.work / "asked.config"
    asked.write_text("".join(f"{symbol}={value}\n" for symbol, value in wanted.items()))
    site.tree.mkdir(exist_ok=True)
    site.make("allnoconfig", KCONFIG_ALLCONFIG=str(asked))
    lost = recipe.unheeded(wanted, (site.tree / ".config").read_text())
    if lost:
        raise NotConfigured(f"{site.kind.package} does not heed {', '.join(lost)}: what these depend on is missing")


def compile_kernel(site: Site) -> None:
    """The kernel, its modules, and its headers for programs."""
    site.make("bzImage", "modules")
    site.make("headers")


def mend_module(site: Site) -> None:
    """The module once more, with its known defect mended, beside the one as it was shipped."""
    beside = site.work / "mended"
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir()
    (beside / "Kbuild").write_text("obj-m := test_hmm.o\n")
    (beside / "test_hmm.c").write_text(recipe.mended((site.source / "lib" / "test_hmm.c").read_text()))
    shutil.copy(site.source / "lib" / "test_hmm_uapi.h", beside)
    site.make(f"M={beside}", "modules")


def compile_hmm_tests(site: Site) -> None:
    """The kernel's own selftest of the module, as it stands beside it. Not optimized: its older harness jumps over locals."""
    directory = selftests(site.source)
    sources = [name for name in ("hmm-tests.c", "vm_util.c", "hugepage_settings.c") if (directory / name).exists()]
    roots = (site.source, site.source / "tools" / "include", site.source / _SELFTESTS, directory)
    words = ["gcc", "-Wall", "-static", "-pthread", "-D_GNU_SOURCE=", "-isystem", str(site.tree / "usr" / "include")]
    words += [f"-I{root}" for root in roots]
    site.runner.run([*words, "-o", str(site.work / HMM_TESTS), *sources], directory)


def selftests(source: Path) -> Path:
    """Where the selftests of the memory management stand, under either of their names."""
    return next(path for name in ("mm", "vm") if (path := source / _SELFTESTS / name / "hmm-tests.c").exists()).parent


def gather(site: Site) -> None:
    """What a guest keeps of all this, with its initrd."""
    shutil.rmtree(site.out, ignore_errors=True)
    site.out.mkdir()
    copies = {
        KERNEL: site.tree / "arch" / "x86" / "boot" / "bzImage",
        CONFIGURATION: site.tree / ".config",
        STOCK_MODULE: site.tree / "lib" / STOCK_MODULE,
        MENDED_MODULE: site.work / "mended" / STOCK_MODULE,
        HMM_TESTS: site.work / HMM_TESTS,
        HEADERS[0]: site.source / "lib" / HEADERS[0],
        HEADERS[1]: site.source / "mm" / HEADERS[1],
    }
    for name, path in copies.items():
        shutil.copyfile(path, site.out / name)
    (site.out / INITRD).write_bytes(make_initrd(site.out, site.work, site.runner))


def release_of(site: Site) -> str:
    """What the kernel calls itself."""
    return (site.tree / "include" / "config" / "kernel.release").read_text().strip()


def make_initrd(parts: Path, scratch: Path, runner: Runner) -> bytes:
    """Compile the agent against a guest's headers, and pack it with the modules and hmm-tests."""
    sources = [str(path) for path in recipe.agent_sources() if path.suffix == ".c"]
    agent = scratch / "agent"
    flags = ["-std=gnu11", "-O2", "-Wall", "-Wextra", "-static", "-pthread", f"-I{parts}", f"-I{recipe.SOURCES}"]
    runner.run(["gcc", *flags, "-o", str(agent), *sources], scratch)
    runner.run(["strip", str(agent)], scratch)
    return initrd.archive(
        (
            *map(initrd.directory, ("bin", "dev", "lib", "proc", "sys", "tmp")),
            initrd.device("dev/console", 5, 1),
            initrd.device("dev/null", 1, 3),
            initrd.program("init", agent.read_bytes()),
            *(initrd.program(f"lib/{name}", (parts / name).read_bytes()) for name in (STOCK_MODULE, MENDED_MODULE)),
            initrd.program(f"bin/{HMM_TESTS}", (parts / HMM_TESTS).read_bytes()),
        )
    )


STAGES: Mapping[str, Callable[[Site], None]] = MappingProxyType(
    {
        "source": unpack,
        "configuration": configure,
        "kernel": compile_kernel,
        "mended module": mend_module,
        "hmm-tests": compile_hmm_tests,
        "initrd": gather,
    }
)


def teller(kind: GuestKind, stage: str, tell: Told) -> Callable[[str, int], None]:
    """Tells what one stage works on."""
    number = list(STAGES).index(stage)
    return lambda detail, done: tell(Step(kind.name, stage, number, len(STAGES), done, detail))
