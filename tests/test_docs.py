"""The pages' links, and the reference that is generated from the package."""

import re
import sys

import pytest
from helpers import ROOT

from layershuffle.commands import COMMANDS

GENERATED = ("commands.md", "configs.md", "train_options.md")
FOLDERS = ("docs", "docs/guides", "docs/findings", "docs/reference")
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
for folder in FOLDERS:
    PAGES += [page for page in sorted((ROOT / folder).glob("*.md")) if page.name not in GENERATED]


@pytest.fixture(scope="module")
def reference():
    sys.path.insert(0, str(ROOT / "docs"))
    try:
        import generate_reference
    finally:
        sys.path.pop(0)
    return generate_reference


def headings(page):
    """The names by which links reach the sections of a page."""
    without_code = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for heading in re.findall(r"^#+ (.*)$", without_code, re.MULTILINE):
        yield re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if re.match(r"\w+:", link) or link in GENERATED:
            continue
        name, _, section = link.partition("#")
        target = page.parent / name if name else page
        assert target.exists(), link
        if section and target.suffix == ".md":
            assert section in headings(target), link


def test_the_site_has_every_page():
    index = (ROOT / "docs/index.md").read_text()
    for folder in ("guides", "findings"):
        for page in (ROOT / "docs" / folder).glob("*.md"):
            assert re.search(rf"^(?:.* <)?{folder}/{page.stem}>?$", index, re.MULTILINE), page.name


@pytest.mark.heavy
def test_the_reference_has_every_command_and_what_it_takes(reference):
    page = reference.commands_page()
    sections = dict(re.findall(r"^## (\S+)\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL))
    assert list(sections) == list(COMMANDS)
    assert "| `CHECKPOINT` |" in sections["evaluate"]
    assert "| `--random_orders` |" in sections["evaluate"]
    assert "| `--model.sampler` |" in reference.train_page()


def test_help_texts_become_cells_of_a_table(reference):
    assert reference.escaped("a :class:`~b.C`, ``d|e`` or <f> %%") == r"a `C`, `d\|e` or \<f\> %"


def test_the_reference_has_every_config_with_its_comment(reference):
    page = reference.configs_page()
    for path in (ROOT / "configs").glob("*/*.yaml"):
        comment, content = reference.split_config(path.read_text())
        assert f"### {path.stem}\n" in page
        assert reference.escaped(comment) in page
        assert comment
        assert not content.startswith("#")


def test_the_reference_has_every_function_and_class_once(reference):
    pages = reference.api_pages()
    names = re.findall(r"^\.\. auto(?:class|function):: (\S+)$", "\n".join(pages.values()), re.MULTILINE)
    assert len(names) == len(set(names)) > 100
    for name in ("layershuffle.evaluate", "layershuffle.Order", "layershuffle.orders.Shuffle"):
        assert name in names
