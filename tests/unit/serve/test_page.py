"""The page /docs, in a real browser: it asks for a key, lists every operation, and tries them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import CHROMIUM, Browser, browser
from fastapi.testclient import TestClient
from tiny_ir import BLUE
from unit.serve.conftest import MakeService, enrol, serving

from edgeface.serve.app import describe

pytestmark = [pytest.mark.timeout(120), pytest.mark.slow]


@pytest.fixture
def opened(make_service: MakeService, tmp_path: Path) -> Iterator[tuple[Browser, str, str]]:
    if CHROMIUM is None:
        pytest.skip("there is no Chromium")
    service = make_service()
    enrol(service, "Ada", BLUE)
    with serving(service) as port, browser(tmp_path / "profile") as page:
        yield page, f"http://127.0.0.1:{port}", service.first_key or ""


def test_the_page_lists_and_tries_operations_and_asks_nobody_else(opened: tuple[Browser, str, str]) -> None:
    page, address, key = opened
    for width, dark in ((400, True), (1280, False)):
        page.open(f"{address}/docs", width=width, dark=dark)
        page.evaluate("document.querySelector('#open button').click()")  # without a key
        assert page.evaluate("document.querySelectorAll('main details').length") == 0
        page.evaluate(f"document.getElementById('key').value = '{key}'")
        page.evaluate("document.querySelector('#open button').click()")
        page.wait_for("document.querySelector('main details') !== null")
        listed = page.evaluate("[...document.querySelectorAll('main > section > details > summary > code')]"
                               ".map((each) => each.textContent)")  # fmt: skip
        known = [f"{method.upper()} {path}" for path, methods in describe()["paths"].items() for method in methods]
        assert sorted(listed) == sorted(known)
        if dark:
            assert page.barriers() == []
        page.evaluate("document.querySelectorAll('main > section > details').forEach((each) => { each.open = true; })")
        page.wait_for(f"document.querySelectorAll('form.try').length == {len(known)}")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        unnamed = "[...document.querySelectorAll('input, textarea')].filter((each) => !each.labels.length).length"
        assert page.evaluate(unnamed) == 0
        person = "document.querySelector('#person form')"
        page.evaluate(f"{person}.elements['path:person_id'].value = '1'")
        page.evaluate(f"{person}.dispatchEvent(new Event('input'))")
        line = page.evaluate(f"{person}.querySelector('pre').textContent")
        assert line == f"curl -H \"x-api-key: $KEY\" '{address}/api/edgeface/v1/galleries/default/people/1'"
        page.evaluate(f"{person}.querySelector('button').click()")
        shown = page.wait_for(f"{person}.querySelector('div').textContent")
        assert shown.startswith("200, application/json")
        assert '"name": "Ada"' in shown
        assert {url.partition("/docs")[0].partition("/api")[0] for url in page.requested()} <= {address, "data:,"}
        assert page.complaints() == []


def test_a_wrong_key_is_told_and_shows_nothing(opened: tuple[Browser, str, str]) -> None:
    page, address, _ = opened
    page.open(f"{address}/docs", width=800)
    page.evaluate("document.getElementById('key').value = 'wrong'")
    page.evaluate("document.querySelector('#open button').click()")
    told = page.wait_for("document.getElementById('status').textContent")
    assert told.startswith("Not shown: expected a key")


def test_the_page_needs_no_key_and_runs_nothing_but_its_own_files(client: TestClient) -> None:
    for path in ("/docs", "/docs/page.css", "/docs/page.js"):
        answer = client.get(path, headers={"x-api-key": ""})
        assert (answer.status_code, len(answer.text) > 500) == (200, True), path
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'; script-src 'self'; style-src 'self'" in policy
        assert "unsafe" not in policy
    assert client.get("/api/edgeface/v1/openapi.json", headers={"x-api-key": ""}).status_code == 401
