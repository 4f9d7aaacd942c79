"""Laws: a request is what the options say and nothing else; a refusal names the option that answers it; and no secret
that a server repeats is kept or shown."""

import base64
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from wire_server import Answer, Asked, refuses, says, serving

from bactrian import masking
from bactrian.cli.evaluate import WireOptions
from bactrian.data.records import Message
from bactrian.errors import BactrianError, InputError, line
from bactrian.evaluate.address import Address, Wire
from bactrian.evaluate.calls import Call, Failure, Reply, Store
from bactrian.evaluate.endpoint import Endpoint
from bactrian.evaluate.pace import Limits

PLAIN = Call((Message("system", "Be just."), Message("user", "Which is better?")), 64, temperature=0.5, top_p=0.9)
ONCE = Limits(retries=0, reasks=0, timeout=5)
KEY = "sk-abc/def+ghi=0123456789"


@pytest.fixture(autouse=True)
def forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test's secrets are its own."""
    monkeypatch.setattr(masking, "_known", set())


def ask(url: str, folder: Path, wire: Wire | None = None, call: Call = PLAIN, **more) -> list[Reply | Failure]:
    store = Store(folder / "calls.jsonl")
    try:
        address = Address(url, "m", wire=wire or Wire(), **more)
        return Endpoint(address, store, ONCE).ask([call], lambda reply: True)
    finally:
        store.close()


@pytest.mark.parametrize(
    ("wire", "without", "more"),
    [
        (Wire(), (), {}),
        (Wire(max_completion_tokens=900), ("max_tokens",), {"max_completion_tokens": 900}),
        (Wire(has_temperature=False), ("temperature", "top_p"), {}),
        (Wire(reasoning_effort="low"), (), {"reasoning_effort": "low"}),
        (Wire(extra_body={"top_k": 1, "seed": None, "top_p": None}), ("top_p",), {"top_k": 1}),
        (Wire(has_system=False), (), {"messages": [{"role": "user", "content": "Be just.\n\nWhich is better?"}]}),
    ],
)
def test_the_body_is_the_plain_one_but_for_what_the_option_says(wire, without, more, tmp_path):
    plain = {
        "model": "m",
        "messages": [{"role": "system", "content": "Be just."}, {"role": "user", "content": "Which is better?"}],
        "max_tokens": 64,
        "temperature": 0.5,
        "top_p": 0.9,
    }
    with serving(lambda asked: says("A")) as (url, asked):
        ask(url, tmp_path, wire)
    assert asked[0].body == {name: value for name, value in plain.items() if name not in without} | more


def test_choices_ask_for_log_probabilities(tmp_path):
    with serving(lambda asked: says("m")) as (url, asked):
        ask(url, tmp_path, call=Call(PLAIN.messages, 1, choices=("m", "M")))
    assert (asked[0].body["logprobs"], asked[0].body["top_logprobs"]) == (True, 5)


@pytest.mark.parametrize(
    ("given", "path"),
    [
        ("", "/v1/chat/completions"),
        ("/v1?api-version=1&a=x%20y", "/v1/chat/completions?api-version=1&a=x%20y"),
        (
            "/openai/deployments/d/chat/completions?api-version=2",
            "/openai/deployments/d/chat/completions?api-version=2",
        ),
        ("/v1/?empty=&twice=1&twice=2", "/v1/chat/completions?empty=&twice=1&twice=2"),
    ],
)
def test_the_query_is_kept(given, path, tmp_path):
    with serving(lambda asked: says("A")) as (url, asked):
        ask(url + given, tmp_path)
    assert asked[0].path == path


def test_headers_are_what_was_asked_for(tmp_path):
    wire = Wire(extra_headers={"X-Team": "blue", "X-Api-Key": "other-secret"}, key_header="api-key")
    with serving(lambda asked: says("A")) as (url, asked):
        ask(url, tmp_path, wire, key=KEY)
        ask(url, tmp_path, Wire(), key=KEY)
    first, second = (each.headers for each in asked)
    assert (first["x-team"], first["x-api-key"], first["api-key"]) == ("blue", "other-secret", KEY)
    assert "authorization" not in first
    assert second["authorization"] == f"Bearer {KEY}" and "api-key" not in second
    assert "other-secret" not in (tmp_path / "calls.jsonl").read_text()


def test_a_redirect_elsewhere_takes_no_secret_along(tmp_path):
    wire = Wire(extra_headers={"X-Api-Key": "other-secret"}, key_header="api-key")
    with serving(lambda asked: says("A")) as (other, there):
        moved = other.replace("127.0.0.1", "localhost") + "/v1/chat/completions"
        with serving(lambda asked: (307, b"", {"Location": moved})) as (url, _):
            ask(url, tmp_path, wire, key=KEY)
            ask(url, tmp_path, Wire(), key=KEY)
    assert len(there) == 2
    assert KEY not in str(there) and "other-secret" not in str(there)


def test_replies_to_other_requests_are_not_mixed(tmp_path):
    wires = [
        Wire(),
        Wire(max_completion_tokens=64),
        Wire(has_temperature=False),
        Wire(reasoning_effort="low"),
        Wire(reasoning_effort="high"),
        Wire(extra_body={"top_k": 1}),
        Wire(extra_headers={"X-Model": "a"}),
        Wire(has_system=False),
    ]
    with serving(lambda asked: says("A")) as (url, asked):
        for _ in range(2):
            for wire in wires:
                ask(url, tmp_path, wire)
        assert len(asked) == len(wires)
        # Who asks, and where, changes no reply.
        ask(url + "/v1?a=1", tmp_path, Wire(key_header="api-key"), key=KEY)
        assert len(asked) == len(wires)


@pytest.mark.parametrize(
    ("status", "message", "parameter", "advice"),
    [
        (
            400,
            "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens'.",
            "max_tokens",
            "--judge-max-completion",
        ),
        (400, "'temperature' does not support 0.0 with this model. Only the default (1) value", None, "no-temperature"),
        (400, "`temperature` is deprecated for this model.", "temperature", "--judge-no-temperature"),
        (422, "Unrecognized request argument supplied: top_p", None, "--judge-no-temperature"),
        (400, "System role not supported", None, "--judge-no-system"),
        (400, "Conversation roles must alternate user/assistant/user/assistant/...", None, "--judge-no-system"),
        (400, "Developer instruction is not enabled for models/gemma", None, "--judge-no-system"),
        (400, "Invalid role: 'system' is not allowed", None, "--judge-no-system"),
        (400, "logprobs are not supported with reasoning models: 'logprobs'", "logprobs", '{"logprobs": null}'),
        (400, "Unknown parameter: 'seed'.", "seed", '{"seed": null}'),
        (401, "Access denied due to invalid subscription key", None, "--judge-key-header"),
    ],
)
def test_a_refusal_names_the_option_that_answers_it(status, message, parameter, advice, tmp_path):
    with serving(lambda asked: refuses(status, message, parameter)) as (url, asked):
        with pytest.raises(InputError) as caught:
            ask(url, tmp_path, key=KEY)
        assert advice in str(caught.value) and len(asked) == 1
        assert advice in line(caught.value, masking.mask_line), "also where the line is cut"


def test_azure_without_its_query_is_told_of_it(tmp_path):
    with serving(lambda asked: refuses(404, "Resource not found")) as (url, _):
        with pytest.raises(InputError, match="api-version=VERSION"):
            ask(url + "/openai/deployments/d", tmp_path)
        with pytest.raises(InputError, match="the model 'm', and whether path and query"):
            ask(url, tmp_path)


def test_what_is_wrong_with_one_prompt_alone_is_no_advice(tmp_path):
    for message in ("The response was filtered", "This model's maximum context length is 100 tokens: max_tokens is 64"):
        with serving(lambda asked, message=message: refuses(400, message)) as (url, _):
            (outcome,) = ask(url, tmp_path)
        assert isinstance(outcome, Failure) and "--judge" not in outcome.reason


@pytest.mark.parametrize(
    "make",
    [
        lambda: Address("ftp://x", "m").checked(),
        lambda: Address("http://", "m").checked(),
        lambda: Address("http://a b/v1", "m").checked(),
        lambda: Address("http://a:99999/v1", "m").checked(),
        lambda: Address("http://[a/v1", "m").checked(),
        lambda: Address("http://a/v1\n", "m").checked(),
        lambda: Address("http://a", "m", "sk-é").checked(),
        lambda: Address("http://a", "m", wire=Wire(extra_headers={"a b": "x"})).checked(),
        lambda: Address("http://a", "m", wire=Wire(extra_headers={"a": "x\r\nb: c"})).checked(),
        lambda: Address("http://a", "m", wire=Wire(key_header="a:")).checked(),
        lambda: Address("http://a", "m", wire=Wire(max_completion_tokens=0)).checked(),
        lambda: Address("http://a", "m", wire=Wire(extra_body={"model": "n"})).checked(),
    ],
)
def test_what_cannot_be_sent_is_refused_at_the_door(make):
    with pytest.raises(InputError):
        make()


def echoes() -> dict[str, Callable[[Asked], Answer]]:
    """Servers that repeat the key, by where they do."""

    def key(asked: Asked) -> str:
        return asked.headers["authorization"].removeprefix("Bearer ")

    return {
        "a reply": lambda asked: says(f"your key is {key(asked)} [[5]]"),
        "a body that is no completion": lambda asked: (200, f"<html>{key(asked)}</html>".encode(), {}),
        "a refusal": lambda asked: refuses(400, f"header was Authorization: Bearer {key(asked)}"),
        "base64": lambda asked: refuses(400, f"base64 {base64.b64encode(key(asked).encode()).decode()}"),
        "a wrong key": lambda asked: refuses(401, f"Incorrect API key provided: {key(asked)}"),
        "where the text is cut": lambda asked: refuses(500, f"{'x' * 190} {key(asked)}"),
        "no such model": lambda asked: refuses(404, f"{key(asked)} has no such model"),
        "a bad redirect": lambda asked: (302, b"", {"Location": f"http://[{key(asked)}/"}),
        "json in the message": lambda asked: refuses(400, json.dumps({"key": key(asked)})),
    }


@pytest.mark.parametrize("where", echoes())
def test_a_key_that_a_server_repeats_is_neither_kept_nor_shown(where, tmp_path):
    said = ""
    with serving(echoes()[where]) as (url, asked):
        try:
            said = str(ask(url, tmp_path, key=KEY))
        except BactrianError as error:
            said = line(error, masking.mask_line)
        assert asked[0].headers["authorization"] == f"Bearer {KEY}", "it was sent"
    for text in (said, (tmp_path / "calls.jsonl").read_text()):
        assert KEY not in text and KEY[:10] not in text and base64.b64encode(KEY.encode()).decode()[:12] not in text


def test_the_options_of_the_command_say_how_an_address_is_asked():
    assert WireOptions().wire("--judge") == Wire()
    options = WireOptions(
        max_completion=900,
        no_temperature=True,
        reasoning="low",
        extra_body='{"top_k": 1}',
        extra_header=["X-Team=blue=sky", "X-Other: a b"],
        key_header="api-key",
        no_system=True,
    )
    assert options.wire("--judge") == Wire(
        900, False, "low", {"top_k": 1}, {"X-Team": "blue=sky", "X-Other": "a b"}, "api-key", False
    )


@pytest.mark.parametrize(
    "options",
    [
        WireOptions(extra_body="[1]"),
        WireOptions(extra_body='{"a": NaN}'),
        WireOptions(extra_body="{"),
        WireOptions(extra_header=["sk-abcdefgh"]),
        WireOptions(extra_header=["=sk-abcdefgh"]),
    ],
)
def test_an_option_that_says_nothing_is_refused_unseen(options: WireOptions):
    with pytest.raises(InputError, match="--model-extra-") as caught:
        options.wire("--model")
    assert "abcdefgh" not in str(caught.value)
