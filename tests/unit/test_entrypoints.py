"""Entry points: how a flow is found and imported, and what is refused."""

from __future__ import annotations

import pickle
import socket
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.deployments.entrypoints import find_flows, load_flow, split
from orchestrator.exceptions import FlowLoadError, OrchError

HELLO = """
from orchestrator import flow

@flow
def hello_flow(name: str = "world"):
    return f"hello {name}"

@flow(name="Named")
def other():
    pass

helper = 3
def plain(): pass
"""


@pytest.fixture(autouse=True)
def leave_no_modules(tmp_path: Path) -> Iterator[None]:
    path = list(sys.path)
    yield
    sys.path[:] = path
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None) or "").startswith(str(tmp_path.parent)):
            del sys.modules[name]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "hello_flow.py").write_text(HELLO)
    return tmp_path


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def refused(entrypoint: str, path: Path) -> FlowLoadError:
    with pytest.raises(FlowLoadError) as caught:
        load_flow(entrypoint, path)
    return caught.value


def test_a_flow_is_loaded_from_a_file(project: Path) -> None:
    flow = load_flow("hello_flow.py:hello_flow", project)
    assert flow.name == "hello-flow"
    assert flow.fn() == "hello world"


def test_a_flow_is_loaded_from_a_file_in_a_folder_whose_neighbours_it_imports(project: Path) -> None:
    write(project / "flows" / "neighbour_of_load.py", "from top_of_project import base\nstep = base + 1\n")
    write(project / "top_of_project.py", "base = 1\n")
    write(
        project / "flows" / "load.py",
        "from neighbour_of_load import step\nfrom orchestrator import flow\n@flow\ndef load(): return step\n",
    )
    assert load_flow("flows/load.py:load", project).fn() == 2


def test_a_flow_in_a_package_may_import_relatively(project: Path) -> None:
    write(project / "src" / "pack_of_flows" / "__init__.py", "")
    write(project / "src" / "pack_of_flows" / "base.py", "answer = 42\n")
    write(
        project / "src" / "pack_of_flows" / "load.py",
        "from .base import answer\nfrom orchestrator import flow\n@flow\ndef load(): return answer\n",
    )
    flow = load_flow("src/pack_of_flows/load.py:load", project)
    assert flow.fn() == 42
    assert flow.fn.__module__ == "pack_of_flows.load"


def test_a_flow_is_loaded_from_a_module(project: Path) -> None:
    write(project / "module_with_flow.py", HELLO)
    assert load_flow("module_with_flow:other", project).name == "Named"


def test_a_module_is_found_by_pickle_and_by_forward_references(project: Path) -> None:
    write(
        project / "forward_flow.py",
        "from __future__ import annotations\nfrom pydantic import BaseModel\nfrom orchestrator import flow\n"
        "class Item(BaseModel):\n    part: Part | None = None\nclass Part(BaseModel):\n    n: int\n"
        "@flow\ndef f(item: Item): return item\n",
    )
    load_flow("forward_flow.py:f", project)
    item = sys.modules["forward_flow"].Item(part={"n": 1})
    assert pickle.loads(pickle.dumps(item)).part.n == 1


def test_two_files_of_the_same_name_are_two_modules(project: Path) -> None:
    for folder in ("a", "b"):
        write(project / folder / "same.py", f"from orchestrator import flow\n@flow\ndef f(): return {folder!r}\n")
    assert load_flow("a/same.py:f", project).fn() == "a"
    assert load_flow("b/same.py:f", project).fn() == "b"


def test_a_file_called_like_the_standard_library_does_not_replace_it(project: Path) -> None:
    import json

    write(project / "json.py", HELLO)
    assert load_flow("json.py:hello_flow", project).fn() == "hello world"
    assert sys.modules["json"] is json


def test_a_file_called_like_a_loaded_module_does_not_replace_it(project: Path) -> None:
    import yaml

    write(project / "yaml.py", HELLO)
    assert load_flow("yaml.py:hello_flow", project).fn() == "hello world"
    assert sys.modules["yaml"] is yaml


def test_a_file_is_imported_once_and_again_after_a_change(project: Path) -> None:
    first = load_flow("hello_flow.py:hello_flow", project)
    assert load_flow("hello_flow.py:hello_flow", project) is first
    write(project / "hello_flow.py", HELLO.replace("hello {name}", "good night {name}"))
    assert load_flow("hello_flow.py:hello_flow", project).fn() == "good night world"


def test_a_missing_file_is_named_with_the_host_and_how_to_ship_code(project: Path) -> None:
    error = refused("nowhere.py:f", project)
    assert str(project / "nowhere.py") in str(error)
    assert socket.gethostname() in str(error)
    assert "every worker host" in str(error.hint)


def test_a_missing_module_is_named_with_where_it_was_looked_for(project: Path) -> None:
    error = refused("no_such_module.at_all:f", project)
    assert "no_such_module" in str(error)
    assert str(project) in str(error.hint)


def test_a_missing_flow_lists_those_that_are_there(project: Path) -> None:
    error = refused("hello_flow.py:hello_flwo", project)
    assert "There is no flow 'hello_flwo' in hello_flow.py." in str(error)
    assert error.hint == "Did you mean hello_flow.py:hello_flow? Its flows: hello_flow, other."


@pytest.mark.parametrize(("name", "kind"), [("plain", "function"), ("helper", "int")])
def test_what_is_no_flow_is_refused(project: Path, name: str, kind: str) -> None:
    error = refused(f"hello_flow.py:{name}", project)
    assert f"{name!r} in hello_flow.py is a {kind}, not a flow" in str(error)
    assert "@flow" in str(error.hint)


def test_an_import_error_keeps_the_traceback_from_the_users_code_on(project: Path) -> None:
    write(project / "broken.py", "def inner():\n    raise ValueError('no luck')\n\ninner()\n")
    error = refused("broken.py:f", project)
    assert "broken.py does not import" in str(error)
    assert "ValueError: no luck" in str(error)
    assert isinstance(error.__cause__, ValueError)
    assert error.__cause__.__traceback__ is not None
    assert error.__cause__.__traceback__.tb_frame.f_code.co_filename == str(project / "broken.py")
    assert "broken" not in sys.modules


def test_a_missing_package_says_which(project: Path) -> None:
    write(project / "needy.py", "import package_that_nobody_has\n")
    error = refused("needy.py:f", project)
    assert "No module named 'package_that_nobody_has'" in str(error)
    assert sys.executable in str(error.hint)


def test_a_syntax_error_is_an_import_error(project: Path) -> None:
    write(project / "typo.py", "def f(:\n")
    error = refused("typo.py:f", project)
    assert "SyntaxError" in str(error)
    assert isinstance(error.__cause__, SyntaxError)
    shown = "".join(traceback.format_exception(error.__cause__))
    assert f'File "{project / "typo.py"}", line 1' in shown
    assert "importlib" not in shown
    assert "entrypoints" not in shown


def test_a_script_that_exits_does_not_take_the_process_with_it(project: Path) -> None:
    write(project / "exits.py", "import sys\nsys.exit(3)\n")
    assert "__main__" in str(refused("exits.py:f", project).hint)
    write(project / "exits_too.py", "import sys\nsys.exit(3)\n")
    refused("exits_too:f", project)


@pytest.mark.parametrize(
    "entrypoint",
    [
        "../hello_flow.py:hello_flow",
        "a/../../hello_flow.py:f",
        "..\\hello_flow.py:f",
        "/etc/passwd.py:f",
        "C:\\flows.py:f",
        "hello\0flow.py:f",
        "hello\nflow.py:f",
        "..hello:f",
        "os.path/../x:f",
        "--upload-pack=x:f",
        "hello_flow.py",
        "hello_flow.py:",
        ":hello_flow",
        "",
        "hello_flow.py:hello flow",
        "hello_flow.py:f()",
        "x" * 2000 + ".py:f",
    ],
)
def test_an_entry_point_that_leaves_the_project_or_is_none_is_refused(project: Path, entrypoint: str) -> None:
    assert refused(entrypoint, project).hint


def test_a_link_out_of_the_project_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "outside.py", HELLO)
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "linked.py").symlink_to(tmp_path / "outside.py")
    assert "leads out of the project" in str(refused("linked.py:hello_flow", tmp_path / "project"))


def test_a_project_behind_a_link_is_fine(project: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    link = tmp_path_factory.mktemp("elsewhere") / "project"
    link.symlink_to(project)
    assert load_flow("hello_flow.py:hello_flow", link).name == "hello-flow"


@given(st.text(max_size=30) | st.text(st.sampled_from("./\\:~ab\0pyf_*"), max_size=30))
@settings(max_examples=300, deadline=None)
def test_any_text_is_an_entry_point_or_a_clear_error(text: str) -> None:
    try:
        where, function = split(text)
    except OrchError:
        return
    assert where
    assert function
    assert ".." not in where


def test_flows_are_found_without_importing_anything(project: Path) -> None:
    write(
        project / "sub" / "more.py",
        "import orchestrator as o\nraise SystemExit\n@o.flow(name='Say', retries=1)\nasync def say(): pass\n",
    )
    write(project / ".venv" / "hidden.py", HELLO)
    write(project / "env2" / "pyvenv.cfg", "")
    write(project / "env2" / "hidden.py", HELLO)
    write(project / "node_modules" / "hidden.py", HELLO)
    write(project / "broken.py", "def f(:\n")
    write(project / "binary.py", "\0")
    assert [(found.entrypoint, found.name) for found in find_flows(project)] == [
        ("hello_flow.py:hello_flow", "hello-flow"),
        ("hello_flow.py:other", "Named"),
        ("sub/more.py:say", "Say"),
    ]
