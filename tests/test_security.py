"""What care_jax reads cannot run code: no pickles, no remote code, no unsafe YAML, no eval; archives are not unpacked.
Keys go to the endpoint that the user named, and nowhere else.
"""

import ast
import contextlib
import json
import pathlib
import time
import urllib.request

import pytest
import yaml

import care_jax
from care_jax import cli
from care_jax.config import files
from care_jax.errors import UserError
from care_jax.evaluation.endpoint import transport
from tests.evaluation.servers import Server, completion
from tests.serving import serving

KEY = "sk-secret-5b1d0c"

PACKAGE = pathlib.Path(care_jax.__file__).parent
MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "torch", "tarfile", "zipfile"}
CALLS = {"eval", "exec", "compile", "__import__"}
METHODS = {"extractall", "unpack_archive", "unsafe_load", "full_load", "load_all"}
SWITCHES = {"allow_pickle", "trust_remote_code"}


def dangers(tree: ast.AST) -> list[str]:
    """Returns what in a module could run what it reads."""
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names if alias.name.split(".")[0] in MODULES]
        elif isinstance(node, ast.ImportFrom):
            names += [node.module] if node.module.split(".")[0] in MODULES else []
        elif isinstance(node, ast.Call):
            name = node.func.id if isinstance(node.func, ast.Name) else None
            method = node.func.attr if isinstance(node.func, ast.Attribute) else None
            names += [name] if name in CALLS else []
            names += [method] if method in METHODS else []
            for word in node.keywords:
                if word.arg in SWITCHES and not (isinstance(word.value, ast.Constant) and word.value.value is False):
                    names.append(word.arg)
    return names


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nothing_that_is_read_can_run(path):
    assert dangers(ast.parse(path.read_text())) == []


def test_the_walk_sees_what_is_dangerous():
    text = "import pickle\nfrom torch import load\nnp.load(f, allow_pickle=True)\neval(x)\na.extractall()\n"
    assert dangers(ast.parse(text)) == ["pickle", "torch", "allow_pickle", "eval", "extractall"]
    assert dangers(ast.parse("np.load(f, allow_pickle=False)\nx.eval()\nast.literal_eval(x)")) == []


def test_yaml_makes_plain_values_only():
    assert issubclass(files._Loader, yaml.SafeLoader)


@contextlib.contextmanager
def server(answer):
    """Yields (URL, keys that were sent to it); `answer` writes the response."""
    keys = []

    def reply(request):
        keys.append(request.headers.get("Authorization"))
        answer(request)

    with serving(reply) as host:
        yield f"http://{host}/v1", keys


def test_a_key_is_not_sent_on(monkeypatch):
    """If an endpoint redirects to another address, no request goes there."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with server(lambda reply: reply.send_error(500)) as (other, sent_on):

        def elsewhere(reply):
            reply.send_response(302)
            reply.send_header("Location", other)
            reply.end_headers()

        with server(elsewhere) as (url, keys), pytest.raises(UserError, match="HTTP 302"):
            transport.only_model(url)
    assert keys == [f"Bearer {KEY}"]
    assert sent_on == []


def test_a_reply_that_trickles_is_given_up():
    def trickle(reply):
        reply.send_response(200)
        reply.end_headers()
        with contextlib.suppress(OSError):
            for _ in range(200):
                reply.wfile.write(b" ")
                time.sleep(0.02)

    with server(trickle) as (url, _):
        began = time.monotonic()
        with pytest.raises(transport.CallFailed, match="time out"):
            transport.fetch(urllib.request.Request(url), 0.2)
        assert time.monotonic() - began < 2


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://host/v1", "localhost:8000", "//host/v1"])
def test_an_endpoint_is_http(url):
    with pytest.raises(UserError, match="--base-url"):
        transport.check_url(url)


def test_the_key_of_a_judge_is_in_no_file(tmp_path, monkeypatch, capsys):
    """Even if the server refuses the key and repeats it in its message."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    rows = [{"question": f"q{n}", "response": "r", "culture": "Chinese", "category": "norms"} for n in range(3)]
    source = tmp_path / "answers.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["judge", "--responses", str(source), "--out", str(tmp_path / "rated.jsonl"), "--judge-model", "j"]
    for status, wanted in ((401, 2), (400, 0), (200, 0)):
        body = completion("Rating: [[7]]") if status == 200 else {"error": f"{KEY} is no key"}

        def behave(prompt, before, call, answer=(status, {}, body, 0.0)):
            return answer

        with Server(behave) as judge:
            assert cli.main([*words, "--base-url", judge.url]) == wanted
            assert judge.bodies
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) >= 3
    for path in written:
        assert KEY.encode() not in path.read_bytes(), path
    out, err = capsys.readouterr()
    assert KEY not in out + err
