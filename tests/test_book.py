"""The book: it builds without a warning, its links lead somewhere, and one file says where the project lives."""

import re
import shutil
import subprocess
import sys
import urllib.parse
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "book"))

import stamp  # noqa: E402


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The folder of HTML pages."""
    out = tmp_path_factory.mktemp("book")
    jupyter_book = Path(sys.executable).parent / "jupyter-book"
    command = [jupyter_book, "build", ".", "--toc", "book/_toc.yml", "-W", "--keep-going", "--path-output", out]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return out / "_build" / "html"


def test_every_chapter_is_in_the_table_of_contents_and_built(built):
    toc = yaml.safe_load((ROOT / "book" / "_toc.yml").read_text())
    files = [toc["root"], *(chapter["file"] for part in toc["parts"] for chapter in part["chapters"])]
    assert {f"notebooks/{path.stem}" for path in (ROOT / "notebooks").glob("*.ipynb")} <= set(files)
    assert {f"book/{path.stem}" for path in (ROOT / "book").glob("*.md")} <= set(files)
    assert all((built / f"{name}.html").is_file() for name in files)


def test_links_within_the_book_lead_somewhere(built):
    for page in [*built.glob("book/*.html"), *built.glob("notebooks/*.html")]:
        html = page.read_text()
        for target in re.findall(r'(?:href|src)="([^"]+)"', html):
            path, _, fragment = urllib.parse.unquote(target).partition("#")
            if re.match(r"[a-z]+:|//", path):
                continue
            found = (page.parent / path.split("?")[0]).resolve() if path else page
            assert found.exists(), f"{page.name}: {target}"
            if fragment and found.suffix == ".html" and "/_modules/" not in str(found):
                assert f'id="{fragment}"' in found.read_text(), f"{page.name}: {target}"


def test_pages_can_be_opened_on_colab_and_found_by_search(built):
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        html = (built / "notebooks" / f"{path.stem}.html").read_text()
        assert f"https://colab.research.google.com/github/{stamp.home()}/blob/main/notebooks/{path.name}" in html
    index = (built / "searchindex.js").read_text()
    assert "mmd" in index and "notebooks/03_token_selection" in index


def test_one_file_says_where_the_project_lives_and_a_stamp_moves_it(tmp_path):
    copied = [tmp_path / path.relative_to(ROOT) for path in stamp.places()]
    for path, copy in zip(stamp.places(), copied):
        copy.parent.mkdir(exist_ok=True)
        shutil.copy(path, copy)
    stamp.stamp("someone/elsewhere", tmp_path)
    assert stamp.home(tmp_path) == "someone/elsewhere"
    for path, copy in zip(stamp.places(), copied):
        assert stamp.home() not in copy.read_text()
        linked = re.findall(r"(?:github\.com|com/github)/([\w.-]+/tamp)\b", path.read_text())
        assert set(linked) <= {stamp.home()}, path
    stamp.stamp(stamp.home(), tmp_path)
    assert all(path.read_text() == copy.read_text() for path, copy in zip(stamp.places(), copied))
    with pytest.raises(ValueError, match="owner/name"):
        stamp.stamp("nonsense", tmp_path)
