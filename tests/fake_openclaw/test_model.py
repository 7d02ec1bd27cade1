"""`scripts/model` answers as an OpenAI-compatible server, decided by the last words of the user."""

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

MODEL = Path(__file__).parents[2] / "scripts" / "model"


@pytest.fixture(scope="module")
def model() -> Iterator[httpx.Client]:
    with subprocess.Popen([str(MODEL), "0"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        found = re.search(r"http://127\.0\.0\.1:\d+/v1", process.stdout.readline())
        assert found
        with httpx.Client(base_url=found[0], trust_env=False, timeout=10) as client:
            yield client
        process.terminate()


def ask(model: httpx.Client, *messages: dict[str, Any]) -> dict[str, Any]:
    answer = model.post("/chat/completions", json={"model": "fake", "messages": list(messages)})
    return answer.json()["choices"][0]


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def test_it_lists_its_models(model: httpx.Client) -> None:
    assert "fake" in {each["id"] for each in model.get("/models").json()["data"]}


@pytest.mark.parametrize(
    ("said", "heard"),
    [
        ("Hello", "Hello"),
        ("two\nlines", "two\nlines"),
        ("[Mon 2026-11-23 09:33 UTC] Hello\n[message_id: d17995ba-34bd]", "Hello"),
        ("[Telegram Ada (@ada) id:4200001 +3s 2026-11-23 09:34 UTC] Hello\n[message_id: 18]", "Hello"),
        ("[Telegram Bike crew id:-100777 +5s 2026-11-23 09:34 UTC] Ben (4200002): Me too\n[message_id: 26]", "Me too"),
        ("[sic] Hello", "[sic] Hello"),
    ],
)
def test_it_echoes_a_person_s_own_words(model: httpx.Client, said: str, heard: str) -> None:
    assert ask(model, user(said))["message"]["content"] == f"You said: {heard}"


def test_it_skips_openclaw_s_internal_context(model: httpx.Client) -> None:
    internal = user("<<<BEGIN_OPENCLAW_INTERNAL_CONTEXT>>> …")
    assert ask(model, user("Hello"), internal)["message"]["content"] == "You said: Hello"


def test_it_calls_a_tool_and_tells_what_it_said(model: httpx.Client) -> None:
    asked = user('use read {"path": "prices.txt"}')
    choice = ask(model, asked)
    (call,) = choice["message"]["tool_calls"]
    assert choice["finish_reason"] == "tool_calls"
    assert (call["function"]["name"], json.loads(call["function"]["arguments"])) == ("read", {"path": "prices.txt"})
    told = ask(model, asked, choice["message"], {"role": "tool", "tool_call_id": call["id"], "content": "tube 7"})
    assert told["message"]["content"] == "The tool said: tube 7"


def test_it_fails_on_demand(model: httpx.Client) -> None:
    body = {"messages": [user("fail 503")]}
    assert model.post("/chat/completions", json=body).status_code == 503
    assert model.post("/chat/completions", content=b"{").status_code == 400


@pytest.mark.parametrize("said", ["Hello you", "slow 2", 'use read {"path": "a"}'])
def test_a_stream_says_the_same(model: httpx.Client, said: str) -> None:
    whole = ask(model, user(said))
    text, calls, last = "", [], None
    with model.stream("POST", "/chat/completions", json={"stream": True, "messages": [user(said)]}) as response:
        lines = [line.removeprefix("data: ") for line in response.iter_lines() if line]
    for line in lines[:-1]:
        (last,) = json.loads(line)["choices"]
        text += last["delta"].get("content") or ""
        calls += last["delta"].get("tool_calls", [])
    assert lines[-1] == "[DONE]"
    assert last
    assert last["finish_reason"] == whole["finish_reason"]
    assert text == (whole["message"]["content"] or "")
    assert [call["function"] for call in calls] == [call["function"] for call in whole["message"].get("tool_calls", [])]
