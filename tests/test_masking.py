"""Laws: no secret of the process is in a masked text, however it is written there; a key that cannot be sent is refused
without being shown."""

import base64
import html
import json
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bactrian import masking, process
from bactrian.errors import InputError
from bactrian.files import atomic

KEY = "sk-Qx7/+b~2!Zk9\"t'&<w>\\v"  # every character that some notation escapes
SECRETS = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=12, max_size=40)
AROUND = st.text(max_size=12)


@pytest.fixture(autouse=True)
def forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test's secrets are its own."""
    monkeypatch.setattr(masking, "_known", set())


def written(secret: str) -> dict[str, str]:
    """A secret in the notations in which servers and libraries repeat it."""
    return {
        "plain": secret,
        "json": json.dumps(secret)[1:-1],
        "json in json": json.dumps(json.dumps(secret))[1:-1],
        "json of PHP": json.dumps(secret)[1:-1].replace("/", "\\/"),
        "all escaped": "".join(f"\\u{ord(each):04X}" for each in secret),
        "bytes": repr(secret.encode())[2:-1],
        "percent": quote(secret, safe=""),
        "path": quote(secret),
        "form": quote_plus(secret),
        "lower percent": "".join(f"%{ord(each):02x}" for each in secret),
        "html": html.escape(secret),
        "html numbers": "".join(f"&#{ord(each)};" for each in secret),
    }


@settings(max_examples=40, deadline=None)
@given(SECRETS, AROUND, AROUND)
def test_no_notation_of_a_secret_is_left(secret: str, before: str, after: str):
    masking._known.clear()
    masking.know(secret)
    for how, text in written(secret.strip()).items():
        shown = masking.mask(f"{before} {text} {after}")
        assert text not in shown and masking.MASK in shown, how


@settings(max_examples=40, deadline=None)
@given(SECRETS, AROUND, AROUND)
def test_base64_of_a_text_with_a_secret_says_nothing_of_it(secret: str, before: str, after: str):
    masking._known.clear()
    masking.know(secret)
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        text = encode(f"{before}{secret.strip()}{after}".encode()).decode()
        left = masking.mask(f"Basic {text}")
        assert masking.MASK in left
        # What stays of it depends on the neighbours, or on at most a byte at either end.
        assert len(left) <= len("Basic ") + len(encode(f"{before}{after}".encode())) + 12


@settings(max_examples=40, deadline=None)
@given(SECRETS)
def test_values_are_masked_in_all_their_strings(secret: str):
    masking._known.clear()
    masking.know(secret)
    value = {secret: [f"a {secret}", {"b": (secret, 1, None, True, 0.5)}]}
    assert masking.masked(value) == {"…": ["a …", {"b": ["…", 1, None, True, 0.5]}]}


def test_what_is_written_as_json_holds_no_secret(tmp_path):
    masking.know(KEY)
    atomic.write_json(tmp_path / "a.json", {"said": f"your key is {KEY}"})
    atomic.write_jsonl(tmp_path / "b.jsonl", [{"said": f"your key is {KEY}"}])
    for path in tmp_path.iterdir():
        assert json.loads(path.read_text()) == {"said": "your key is …"}


def test_the_environment_s_secrets_are_known(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefghijklm\n")
    monkeypatch.setenv("MY_PROXY", "http://me:p%40ssword@proxy:3128")
    monkeypatch.setenv("SSH_KEY", "/home/me/.ssh/id_rsa")
    shown = masking.mask("hf_abcdefghijklm p%40ssword p@ssword /home/me/.ssh/id_rsa bWU6cEBzc3dvcmQ=")
    assert shown == "… … … /home/me/.ssh/id_rsa …"


def test_addresses_and_headers_are_masked_wherever_they_stand():
    said = "GET https://me:pw@host/v1?api-key=abc&api-version=2 with Authorization: Bearer abc.def-ghi; ask me@host"
    assert masking.mask_line(said) == (
        "GET https://…@host/v1?api-key=…&api-version=2 with Authorization: Bearer …; ask me@host"
    )
    masking.know_address("https://me:hunter22@host/v1?key=abcdefgh&n=12345678")
    assert masking.mask("hunter22 abcdefgh 12345678") == "… … 12345678"


def test_what_protects_nothing_is_no_secret():
    masking.know("none", "EMPTY", "ollama", "")
    assert masking.mask("none of EMPTY, ollama") == "none of EMPTY, ollama"


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r", "\t", " \n", "\ufeff"])
def test_a_key_is_read_without_what_stands_around_it(end: str, monkeypatch):
    monkeypatch.setenv("SOME_KEY", f"{end}sk-abcdefgh{end}")
    assert masking.key("SOME_KEY") == "sk-abcdefgh"
    assert masking.mask("sk-abcdefgh") == "…"


def test_no_key_is_none(monkeypatch):
    monkeypatch.delenv("SOME_KEY", raising=False)
    assert masking.key("SOME_KEY") is None
    monkeypatch.setenv("SOME_KEY", " \n")
    assert masking.key("SOME_KEY") is None


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ("sk-abcé", "not ASCII is at position 7 of 7"),
        ("sk-abc\nsk-def", "a line end is at position 7"),
        ("Bearer sk-abc", "a space is at position 7"),
        ("sk-\x07abc", "a control character"),
        ("sk-\x7fabc", "a control character"),
        ("'sk-abc'", "quotation marks"),
        ("sk-abc\udce9", "not ASCII"),
    ],
)
def test_a_key_that_cannot_be_sent_is_refused_unseen(given: str, why: str, monkeypatch):
    monkeypatch.setenv("SOME_KEY", given)
    with pytest.raises(InputError, match=f"SOME_KEY: .*{why}") as caught:
        masking.key("SOME_KEY")
    assert "abc" not in str(caught.value)


def test_the_traceback_of_a_bug_shows_no_secret(capsys):
    masking.know("sk-abcdefgh")
    error = RuntimeError("headers: Bearer sk-abcdefgh")
    process._show_bug(RuntimeError, error, None)
    assert capsys.readouterr().err == "RuntimeError: headers: Bearer …\n"
