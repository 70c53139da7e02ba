"""The page: whole in itself, safe whatever a subject says, and with the same drawings as the text."""

from __future__ import annotations

import builtins
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest
from attrs import evolve

from migrate_vma_conformance.report import page as page_module
from migrate_vma_conformance.report.files import write_report
from migrate_vma_conformance.report.page import embedded, page
from tests.conformance import reports
from tests.conformance.reports import CLAUSES, TOKEN, example, finding, verdict

REPORTS = [reports.the_mail(), reports.holding(), reports.unknown(), reports.only_should(), reports.broken_twice()]
_NODE = shutil.which("node")
EVIL = "</script><script>alert(1)</script><!-- ' \" & \u2028 {{ 7 * 7 }}"


class Reader(HTMLParser):
    """The elements of a page, the text of its scripts, and what is open at the end."""

    def __init__(self, text):
        super().__init__()
        self.seen, self.open, self.scripts = [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in {"meta", "input", "link", "br"}:
            self.open.append(tag)
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] == ["script"]:
            self.scripts[-1] += data


def data_of(text):
    return json.loads(Reader(text).scripts[0])


def evil_report():
    broken = verdict("C41", finding(example(sentence=EVIL)))
    return evolve(reports.holding(), subject=EVIL, command=EVIL, generations=(reports.generation(EVIL, C41=broken),))


@pytest.mark.parametrize("report", REPORTS)
def test_a_page_is_well_formed_and_loads_nothing(report):
    text = page(report, CLAUSES)
    reader = Reader(text)
    assert reader.open == []
    assert not any("src" in attributes for _, attributes in reader.seen)
    assert all(attributes["href"].startswith("#") for _, attributes in reader.seen if "href" in attributes)
    assert "http://" not in text
    assert "https://" not in text
    assert "url(" not in text
    assert "default-src 'none'" in text


def test_the_ids_of_a_page_are_different():
    ids = [attributes["id"] for _, attributes in Reader(page(reports.the_mail(), CLAUSES)).seen if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_what_a_subject_says_stays_text():
    text = page(evil_report(), CLAUSES)
    plain = Reader(page(reports.broken_twice(), CLAUSES))
    assert "alert(1)</script>" not in text
    assert "{{" not in text.replace("{{ 7", "")
    assert len(Reader(text).scripts) == len(plain.scripts) == 2
    assert data_of(text)["cases"][0]["generation"] == EVIL


def test_embedded_json_cannot_end_its_element_and_means_the_same():
    assert not set("<>&\u2028") & set(embedded([EVIL]))
    assert json.loads(embedded([EVIL])) == [EVIL]


def test_the_page_links_each_violation_of_the_table_to_its_timeline():
    text = page(reports.the_mail(), CLAUSES)
    places = [int(attributes["data-case"]) for _, attributes in Reader(text).seen if "data-case" in attributes]
    assert sorted(places) == list(range(len(data_of(text)["cases"])))
    assert [case["clause"] for case in data_of(text)["cases"]] == ["C41", "C50", "C84", "C85", "C94"]


def test_a_timeline_holds_columns_steps_functions_and_the_command():
    case = data_of(page(reports.the_mail(), CLAUSES))["cases"][0]
    assert case["command"] == f"migrate-vma replay {TOKEN}"
    assert case["brief"]["cpus"] == [[0, "cpu0"], [1, "cpu1"]]
    assert case["brief"]["lines"][0][:5] == [2, 0, "cpu0", "", "fault mm0:0 read"]
    assert case["brief"]["lines"][1][:5] == [5, 0, "cpu0", "do_swap_page", "get 8, refs 2"]
    assert len(case["whole"]["lines"]) > len(case["brief"]["lines"])
    assert case["brief"]["cycle"] is None


def test_the_call_chain_of_a_step_is_that_of_its_line():
    data = data_of(page(reports.the_mail(), CLAUSES))
    line = data["cases"][0]["brief"]["lines"][1]
    assert data["chains"][line[5]] == ["do_swap_page", "handle_mm_fault", "cpu_touch"]


def test_a_timeline_says_where_its_cycle_begins():
    case = data_of(page(reports.the_mail(), CLAUSES))["cases"][2]
    assert case["ever"] == "fair even under strong fairness"
    first = case["whole"]["lines"][case["whole"]["cycle"]]
    assert first[0] == 4, "steps are counted from 1"


def test_a_report_without_violations_has_no_timelines():
    text = page(reports.holding(), CLAUSES)
    assert data_of(text)["cases"] == []
    assert 'id="viewer"' not in text


def test_without_jinja_there_is_no_page_and_no_complaint(monkeypatch, tmp_path):
    real = builtins.__import__

    def without(name, *rest, **more):
        if name == "jinja2":
            raise ImportError(name)
        return real(name, *rest, **more)

    page_module._template.cache_clear()
    monkeypatch.setattr(builtins, "__import__", without)
    write_report(reports.the_mail(), tmp_path, CLAUSES)
    page_module._template.cache_clear()
    assert (tmp_path / "report.json").is_file()
    assert not (tmp_path / "report.html").exists()


def test_the_page_is_the_same_every_time():
    assert page(reports.the_mail(), CLAUSES) == page(reports.the_mail(), CLAUSES)


@pytest.mark.slow
@pytest.mark.skipif(_NODE is None, reason="reads the script with Node.js")
def test_the_script_is_javascript(tmp_path):
    (tmp_path / "page.js").write_text(Reader(page(reports.the_mail(), CLAUSES)).scripts[1])
    found = subprocess.run([_NODE, "--check", tmp_path / "page.js"], check=False, capture_output=True, text=True)
    assert (found.returncode, found.stderr) == (0, "")


def test_the_script_writes_text_and_never_markup():
    script = page_module._asset("page.js")
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function", script)
