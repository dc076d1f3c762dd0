import csv
import io

from dscint_jax.report.tables import Table, csv_text, latex_text, markdown_text, with_interval

TABLE = Table(
    "cohort",
    "Whom it is of",
    ("what", "share_of"),
    (("50 % & more", "a|b"), ("x^2 ~ {1}", "#3\\$")),
    note="A note.",
)


def test_markdown_keeps_bars_within_cells():
    assert markdown_text(TABLE).splitlines() == [
        "Whom it is of",
        "",
        "| what | share_of |",
        "| --- | ---: |",
        "| 50 % & more | a\\|b |",
        "| x^2 ~ {1} | #3\\$ |",
        "",
        "A note.",
    ]


def test_csv_is_read_back():
    assert [tuple(row) for row in csv.reader(io.StringIO(csv_text(TABLE)))] == [
        TABLE.head,
        *TABLE.rows,
    ]


def test_latex_escapes_what_latex_would_read():
    lines = latex_text(TABLE).splitlines()
    assert lines[1] == r"\begin{tabular}{lr}"
    assert r"  what & share\_of \\" in lines
    assert r"  50 \% \& more & a|b \\" in lines
    assert r"  x\textasciicircum{}2 \textasciitilde{} \{1\} & \#3\textbackslash{}\$ \\" in lines


def test_value_without_interval_stands_alone():
    assert with_interval(0.5, None) == "0.500"
    assert with_interval(0.5, [0.25, 0.75]) == "0.500 (0.250 to 0.750)"
    assert with_interval(None, None) == "not defined"
