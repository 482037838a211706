import json

from rich.console import Console

from weighbridge.ledger.glossary import look_up, terms
from weighbridge.ledger.report import Bar, Line, Report, Table, Title

REPORT = Report(
    verb="try",
    data={"n": 2**60},
    blocks=[
        Title(text="model [bold]x[/] :llama:", detail="a\x1b[31mb"),
        Table(
            columns=("role", ">count", ""), rows=[("ffn <b>", "1,000", Bar(share=0.5)), ("norm", "7", Bar(share=0.001))]
        ),
        Line(text="done", faint=True),
    ],
)


def test_the_machine_face_begins_with_the_schema_and_keeps_integers() -> None:
    said = json.loads(json.dumps(REPORT.to_dict()))
    assert next(iter(said)) == "schema"
    assert said == {"schema": "weighbridge/try/1", "n": 2**60}


def test_plain_text_is_aligned_and_harmless() -> None:
    text = str(REPORT)
    assert "\x1b" not in text
    lines = text.splitlines()
    assert [line.rstrip() for line in lines[3:]] == [
        "  role     count",
        "  ffn <b>  1,000  ████████████",
        "  norm         7",
        "done",
    ]


def test_a_terminal_gets_the_same_text_with_colors_and_no_markup_of_a_stranger() -> None:
    console = Console(force_terminal=True, width=100, emoji=False, highlight=False)
    with console.capture() as captured:
        console.print(REPORT)
    shown = captured.get()
    assert "\x1b[" in shown
    assert "model [bold]x[/] :llama:" in shown
    assert "\x1b[31mb" not in shown


def test_html_is_self_contained_and_escaped() -> None:
    page = REPORT._repr_html_()
    assert "ffn &lt;b&gt;" in page
    assert "<script" not in page
    assert "http" not in page
    assert "width: 80px" in page


def test_the_glossary_has_a_line_for_every_row_that_a_report_shows() -> None:
    wanted = {"parameter", "weight", "bias", "buffer", "hyperparameter", "activation", "optimizer state"}
    assert wanted <= terms().keys()
    assert all("\n" not in entry["short"] and len(entry["short"]) < 90 for entry in terms().values())


def test_plural_and_case_are_forgiven() -> None:
    assert look_up("Biases")[0] == "bias"
    assert look_up("optimizer-states")[0] == "optimizer state"
