"""The paper quotes what the pages of results say today."""

import pytest
from benchmarks.quoted import PAPER, TEXT, cell_of, quoted


def test_paper_says_what_the_pages_of_results_say():
    assert PAPER.read_text(encoding="utf-8") == quoted(TEXT.read_text(encoding="utf-8"))


def test_a_cell_that_is_not_there_is_not_quoted():
    with pytest.raises(KeyError, match="no single row"):
        cell_of("learned", "trained ResNet-20, returned buffers", "certainty")
