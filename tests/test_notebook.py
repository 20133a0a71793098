"""The notebook of the examples runs as it stands, and its values show themselves."""

from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[1] / "examples" / "notebooks" / "one_client.ipynb"


@pytest.mark.slow
def test_the_notebook_runs_and_shows_what_was_found(tmp_path):
    nbformat = pytest.importorskip("nbformat", reason="nbclient is not installed: pip install 'leakmap[notebook]'")
    nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed: pip install 'leakmap[notebook]'")
    pages = nbformat.read(NOTEBOOK, as_version=4)
    nbclient.NotebookClient(pages, timeout=600, resources={"metadata": {"path": tmp_path}}).execute()
    outputs = [output for cell in pages.cells if cell.cell_type == "code" for output in cell.outputs]
    shown = [output.get("data", {}) | {"text": output.get("text", "")} for output in outputs]
    html = [one["text/html"] for one in shown if "text/html" in one]
    assert [page.partition("</b>")[0] for page in html] == ["<b>Observation", "<b>Reconstruction", "<b>Audit"]
    assert "exact" in html[2]
    assert "| first in line-up |" in shown[-1]["text"]
