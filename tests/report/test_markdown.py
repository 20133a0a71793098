"""Pages that leakmap writes have lines of the length that the tests allow, and say the same."""

from leakmap.report.markdown import WIDTH, wrapped


def test_prose_is_wrapped_and_all_else_stays():
    words = " ".join(["well-known"] * 40)
    kept = [f"| {words} |", f"    {words}", f"# {words}", "```", words, "```"]
    page = "\n".join([*kept, "", words, "", f"- {words}"])
    lines = wrapped(page).split("\n")
    assert lines[: len(kept)] == kept
    assert max(map(len, lines[len(kept) :])) <= WIDTH
    assert sum(line.startswith("- ") for line in lines) == 1
    assert all(line.startswith("  ") for line in lines[-2:])
    assert wrapped(page).split() == page.split()
