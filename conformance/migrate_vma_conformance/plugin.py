"""The pytest plugin: which driver to check, and its report as a fixture. It judges nothing itself.

    def test_the_driver_keeps_the_contract(migrate_vma_report):
        assert exit_code(migrate_vma_report) == 0

    pytest --migrate-vma-driver my_driver.model:make --migrate-vma-generation v7.0

Rules:
- Every option and fixture begins with `migrate_vma`.
- Loading the plugin imports pytest alone: a project that has it installed and does not use it pays nothing.
- Under xdist each worker checks once at most, and the controller prints each report once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from migrate_vma_conformance.options import CheckOptions
    from migrate_vma_conformance.verdict import Report

_SHOWN = pytest.StashKey[dict[str, str]]()
_KEY = "migrate_vma_reports"


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("migrate-vma", "conformance with the kernel's migrate_vma contract")
    group.addoption("--migrate-vma-driver", metavar="DRIVER", help="a built-in driver, or package.module:factory")
    group.addoption(
        "--migrate-vma-generation", metavar="NAME", help="a name, a kernel version, or all (default: the newest kernel's)"
    )
    group.addoption(
        "--migrate-vma-profile",
        choices=["quick", "default", "deep"],
        default="quick",
        help="how much work (default: %(default)s)",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_SHOWN] = {}


def pytest_report_header(config: pytest.Config) -> str | None:
    """What is checked; nothing where nothing was asked for."""
    driver = config.getoption("--migrate-vma-driver")
    if driver is None:
        return None
    generation = config.getoption("--migrate-vma-generation") or "of the newest kernel"
    return f"migrate-vma: driver {driver}, generation {generation}, profile {config.getoption('--migrate-vma-profile')}"


@pytest.fixture(scope="session")
def migrate_vma_driver(request: pytest.FixtureRequest) -> str:
    """The driver to check. Override it in a conftest to name one without an option."""
    driver = request.config.getoption("--migrate-vma-driver")
    if driver is None:
        pytest.skip("no driver to check: give --migrate-vma-driver, or override the fixture migrate_vma_driver")
    return str(driver)


@pytest.fixture(scope="session")
def migrate_vma_generation(request: pytest.FixtureRequest) -> str:
    """The name of the generation to check on."""
    from migrate_vma_conformance.catalogue import newest_generation  # noqa: PLC0415

    return str(request.config.getoption("--migrate-vma-generation") or newest_generation().name)


@pytest.fixture(scope="session")
def migrate_vma_options(request: pytest.FixtureRequest) -> CheckOptions:
    """How to check."""
    from migrate_vma_conformance.options import CheckOptions, Profile  # noqa: PLC0415

    return CheckOptions(profile=Profile(request.config.getoption("--migrate-vma-profile")))


@pytest.fixture(scope="session")
def migrate_vma_report(
    request: pytest.FixtureRequest, migrate_vma_driver: str, migrate_vma_generation: str, migrate_vma_options: CheckOptions
) -> Report:
    """The verdicts on the driver; their table is printed at the end of the session."""
    from migrate_vma_conformance import kit  # noqa: PLC0415
    from migrate_vma_conformance.catalogue import judged_clauses  # noqa: PLC0415
    from migrate_vma_conformance.errors import KitError  # noqa: PLC0415
    from migrate_vma_conformance.report.pretty import render_report  # noqa: PLC0415

    try:
        report = kit.check(migrate_vma_driver, [migrate_vma_generation], migrate_vma_options)
    except KitError as error:
        pytest.fail(str(error), pytrace=False)
    text = "\n".join(render_report(report, judged_clauses()))
    request.config.stash[_SHOWN][f"{migrate_vma_driver} on {migrate_vma_generation}"] = text
    return report


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A worker hands its reports to the controller."""
    output: dict[str, Any] | None = getattr(session.config, "workeroutput", None)
    if output is not None:
        output[_KEY] = session.config.stash[_SHOWN]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """The controller gathers the reports of xdist's workers."""
    node.config.stash[_SHOWN].update(getattr(node, "workeroutput", {}).get(_KEY, {}))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for title, text in config.stash[_SHOWN].items():
        terminalreporter.section(f"migrate-vma: {title}")
        terminalreporter.write_line(text)
