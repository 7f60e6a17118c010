"""A report as HTML: well formed, on its own, escaped, and holding what the report says."""

import dataclasses
import linecache
import re
from html.parser import HTMLParser
from pathlib import Path

import jax.numpy as jnp
import pytest

import robustad as rad
from robustad.cli import main
from robustad.diagnosis import Contribution, Finding, LeafSummary, Report
from robustad.diagnosis._marked_lines import marked_lines

VOID = {"meta", "br", "hr", "img", "input", "link"}
EVIL = "<script>alert('x\"&')</script>"


class Balanced(HTMLParser):
    """The text of a page, every tag of which must be closed in its turn."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> without its beginning"
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def parsed(html: str) -> Balanced:
    parser = Balanced()
    parser.feed(html)
    parser.close()
    assert parser.open == []
    tags = {tag for tag, _ in parser.tags}
    assert not tags & {"script", "link", "img", "iframe", "object", "base", "form"}
    names = {name for _, attributes in parser.tags for name in attributes}
    assert not {name for name in names if name in ("src", "href", "xlink:href") or name.startswith("on")}
    assert "url(" not in html and "@import" not in html
    return parser


def marked(html: str, kind: str) -> str:
    """The excerpts' lines with a mark."""
    return "".join(re.findall(rf'<span class="{kind}"><u>.*', html.replace("</span>", "</span>\n")))


@pytest.fixture(scope="module")
def wrong() -> Report:
    def loss(x):
        return (1 - jnp.cos(x)) ** 2

    return rad.audit(loss)(jnp.float32(1e-3))


def finding(file: str, line: int, **other) -> Finding:
    held = {"kind": "cancellation", "phase": "forward", "file": file, "line": line, "function": EVIL}
    held |= {"primitive": "sub", "bits_lost": 20.0, "reaches": (EVIL,), "cause": f"a cause {EVIL}", "remedy": EVIL}
    return Finding(**(held | other))


def contribution(file: str, line: int, share: float, leaf: str = EVIL) -> Contribution:
    return Contribution(leaf, file, line, "f", "mul", "forward", share, share)


@pytest.fixture
def hostile(wrong: Report, tmp_path: Path) -> Report:
    """Sources and names that are markup, an error made elsewhere, and one in another file."""
    first, second = str(tmp_path / "first & <b>.py"), str(tmp_path / "second.py")
    Path(first).write_text("".join(f"line{k} = {EVIL}\n" for k in range(1, 41)))
    Path(second).write_text("".join(f"other{k}\n" for k in range(1, 41)))
    linecache.checkcache()
    findings = (
        finding(first, 20, committed_at=12),
        finding(second, 30, committed_at=3, committed_file=first, shows_at="second.py:33 (log)", bits_lost=None),
        finding("<unknown>", 0),
        finding(str(tmp_path / "gone.py"), 7),
    )
    ranking = (contribution(second, 5, 0.7), contribution(first, 2, -0.2), contribution("<unknown>", 0, 0.5))
    leaves = (
        LeafSummary(EVIL, (20.0,), False, 24, 0, 1.0, (3,), "float32", 4.5),
        LeafSummary("sliced", (1.0, 24.0), True, 24, 1, float("nan"), (2,), "float32"),
        LeafSummary("none", None, False, None, 2, float("inf"), (), "float64"),
    )
    value = jnp.float32(jnp.nan)
    return dataclasses.replace(
        wrong, findings=findings, notes=findings, ranking=ranking, leaves=leaves, value=value, function=EVIL
    )


def test_a_real_report(wrong: Report):
    (fault,) = wrong.findings
    html = wrong.to_html()
    text = parsed(html).text
    assert html.startswith("<!DOCTYPE html>")
    assert "NOT OK, 1 cause" in text
    assert fault.cause in text and fault.remedy in text
    assert fault.source in text
    assert "return (1 - jnp.cos(x)) ** 2" in marked(html, "found")
    assert f"{wrong.leaves[0].worst:.1f} of 24" in text
    assert all(f"{one.share:+.1%}" in text for one in wrong.ranking)
    assert wrong.ranking  # else the line above says nothing
    assert "http" not in html


def test_markup_in_sources_and_names_is_text(hostile: Report):
    html = hostile.to_html()
    assert EVIL not in html  # unescaped, it would run
    page = parsed(html)
    assert f"line20 = {EVIL}" in page.text
    assert f"a cause {EVIL}" in page.text
    assert "nan" in page.text
    assert f"{EVIL} in file" not in page.text


def test_where_errors_are_made_and_where_they_show(hostile: Report):
    html = hostile.to_html()
    assert "line20 = " in marked(html, "found") and "other30" in marked(html, "found")
    assert "line12 = " in marked(html, "committed") and "line20" not in marked(html, "committed")
    assert "other5<" in marked(html, "made") and "other33" in marked(html, "shown")
    assert "4.5" in parsed(html).text
    assert "1 above the threshold" in parsed(html).text
    order = [(Path(one.file).name, one.line) for one in marked_lines(hostile)]
    first, second = "first & <b>.py", "second.py"
    assert order == [
        *((first, k) for k in (2, 3, 12, 20)),
        *((second, k) for k in (5, 30, 33)),
        ("gone.py", 7),
    ]
    elsewhere = dataclasses.replace(hostile.findings[0], committed_at=5, committed_file=hostile.findings[1].file)
    moved = dataclasses.replace(hostile, findings=(elsewhere,))
    assert [one.committed for one in marked_lines(moved) if Path(one.file).name == second] == [[1]]


def test_the_picture_stays_within_its_frame(hostile: Report):
    drawing = re.search(r"<svg.*</svg>", hostile.to_html(), re.DOTALL)
    assert drawing is not None
    rects = re.findall(r'<rect class="([a-z ]+)" x="([\d.]+)" y="([\d.]+)" width="\d+" height="([\d.]+)"', drawing[0])
    assert {kind for kind, *_ in rects} == {"made", "made opposed", "lost"}
    width, height = map(float, re.findall(r'viewBox="0 0 (\d+) (\d+)"', drawing[0])[0])
    assert all(0 <= float(x) < width and float(y) >= 0 and float(y) + float(h) < height for _, x, y, h in rects)
    heights = sorted(float(h) for kind, _, _, h in rects if kind.startswith("made"))
    assert heights[1] / heights[0] == pytest.approx(0.7 / 0.2, rel=0.01)


def test_a_notebook_gets_a_fragment(hostile: Report):
    held = hostile._repr_html_()
    parsed(held)
    assert "<html" not in held and "<body" not in held
    assert held in hostile.to_html()
    (style,) = re.findall(r"<style>(.*?)</style>", held, re.DOTALL)
    selectors = re.findall(r"([^{}]+)\{", re.sub(r"@media[^{]*\{", "", style))
    assert all(one.strip().startswith(".robustad") for group in selectors for one in group.split(","))


def test_a_healthy_report(wrong: Report):
    leaves = (LeafSummary("w", (0.0,), False, 24, 0, 1.0, (3,), "float32"),)
    healthy = dataclasses.replace(wrong, ok=True, findings=(), notes=(), ranking=(), leaves=leaves)
    page = parsed(healthy.to_html())
    assert "audit loss: OK" in page.text
    assert "svg" not in {tag for tag, _ in page.tags}
    assert "Error along" not in page.text
    assert "audit loss: OK" in parsed(dataclasses.replace(healthy, leaves=()).to_html()).text


@pytest.mark.parametrize("value", [jnp.inf, 1 + 2j, jnp.ones((2, 3)), jnp.int32(3), jnp.bfloat16(2)])
def test_any_value(wrong: Report, value):
    parsed(dataclasses.replace(wrong, value=value, value_bits_lost=None, dtype="f64").to_html())


def test_a_large_report_stays_small(hostile: Report, tmp_path: Path):
    file = str(tmp_path / "second.py")
    names = [f"layers/{k}/attention/projection/kernel" for k in range(500)]
    slices = tuple(float(k % 24) for k in range(200))
    leaves = tuple(LeafSummary(name, slices, True, 24, 0, 1.0, (200, 7), "float32", 1.0) for name in names)
    ranking = tuple(contribution(file, 1 + k, 0.1, name) for name in names for k in range(8))
    one = finding(file, 30, reaches=tuple(names))
    findings = tuple(dataclasses.replace(one, line=1 + k % 40) for k in range(100))
    large = dataclasses.replace(hostile, leaves=leaves, ranking=ranking, findings=findings, notes=findings * 10)
    html = large.to_html()
    assert len(html.encode()) < 1_000_000
    text = parsed(html).text
    assert all(name in text for name in names)
    assert "480 more" in text and "1000 notes" in text and "and 494 more" in text
    wide = dataclasses.replace(large, ranking=tuple(contribution(file, k, 1 / k) for k in range(1, 500)))
    assert "lines that say less are left out" in parsed(wide.to_html()).text


def test_the_command_line_writes_it(tmp_path: Path, monkeypatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.chdir(tmp_path)
    Path("paged.py").write_text("def loss(x):\n    return x * x\n\n\ndef example_args():\n    return 2.0\n")
    assert main(["audit", "paged.py:loss", "--html", "report.html"]) == 0
    out, err = capsys.readouterr()
    assert err == "robustad: wrote report.html\n"
    assert "audit loss" in out and "<" not in out
    parsed(Path("report.html").read_text(encoding="utf-8"))
