"""What the pages say runs: Python as a script, YAML as an overlay of the quickstart, commands as far as their arguments.

The blocks of a page run in their order, in one folder and one namespace. Above a block may stand ``<!-- run -->``: the overlay
is not only parsed, it trains two steps; or ``<!-- skip: reason -->``.
"""

from __future__ import annotations

import re
import shlex
import sys
import types
from pathlib import Path

import pytest
import yaml

from lightning_cnnopt.__main__ import main
from tests.contracts.cases import exported_techniques

ROOT = Path(__file__).parent.parent
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [ROOT / "README.md", *DOCS]
QUICKSTART = str(ROOT / "configs" / "quickstart.yaml")
BLOCK = re.compile(r"(?:^<!-- *(run|skip:.*?) *-->\s*)?^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)(#[^)\s]*)?\)")
TWO_STEPS = ["--trainer.fast_dev_run", "2", "--test_after_fit", "false", "--trainer.enable_progress_bar", "false"]


def run_python(code, page, line, script):
    # empty lines in front, so that a traceback names the line of the page
    exec(compile("\n" * line + code, str(page), "exec"), vars(script))


def run_overlay(code, mark):
    Path("overlay.yaml").write_text(code)
    assert yaml.safe_load(code), "an empty overlay shows nothing"
    assert main(["fit", "-c", QUICKSTART, "-c", "overlay.yaml", *(TWO_STEPS if mark else ["--print_config"])]) == 0


def parse_commands(code):
    for line in code.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if not words or words[0] != "cnnopt":
            continue
        # a run of the reader's is not here; its config has the arguments of the quickstart
        words = [re.sub(r"^runs/.*/config\.yaml$", QUICKSTART, word) for word in words[1:]]
        words = [re.sub(r"^configs/", f"{ROOT}/configs/", word) for word in words]
        asks = {"--help", "-h", "--version"} & set(words)
        assert main(words if asks else [*words, "--print_config"]) == 0, line


@pytest.mark.parametrize(
    "page", [pytest.param(page, id=page.stem, marks=[pytest.mark.slow] * (page.stem != "README")) for page in PAGES]
)
def test_every_block_runs(page, monkeypatch):
    script = types.ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", script)  # classes of a page are stored and found as those of a script
    text = page.read_text()
    blocks = list(BLOCK.finditer(text))
    assert len(blocks) == text.count("\n```") / 2, "a block without a language, or one that does not end"
    for block in blocks:
        mark, language, code = block.groups()
        line = text.count("\n", 0, block.start(3))
        if (mark or "").startswith("skip"):
            continue
        try:
            if language == "python":
                run_python(code, page, line, script)
            elif language == "yaml":
                run_overlay(code, mark)
            elif language == "bash":
                parse_commands(code)
        except Exception as error:
            raise AssertionError(f"{page.name}:{line + 1}: {error}") from error


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page):
    for path, _ in LINK.findall(page.read_text()):
        assert not path or (page.parent / path).exists(), path


def test_every_page_is_in_the_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text()
    assert [page.name for page in DOCS if f": {page.name}\n" not in navigation] == []


@pytest.mark.parametrize("name", exported_techniques())
def test_every_technique_has_a_card(name):
    assert any(f"## `{name}`\n" in page.read_text() for page in DOCS)
