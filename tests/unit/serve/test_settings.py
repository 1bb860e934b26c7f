"""One configuration: from a file and the environment, all of it checked, all of it explained."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeface.errors import InputError
from edgeface.serve.settings import Settings, describe_settings, load_settings


def test_what_is_printed_is_what_is_the_default_and_explains_every_key(tmp_path: Path) -> None:
    path = tmp_path / "serve.yml"
    path.write_text(describe_settings())
    assert load_settings(path, {}) == Settings()
    lines = path.read_text().splitlines()
    keys = [number for number, line in enumerate(lines) if line.strip() and not line.lstrip().startswith("#")]
    assert all("EDGEFACE_SERVE_" in lines[number - 1] for number in keys if lines[number].strip() != "default:")


def test_every_key_is_a_variable_too(tmp_path: Path) -> None:
    path = tmp_path / "serve.yml"
    path.write_text("listen: {port: 1}\ngalleries: {north: {fpir: 0.1}}\n")
    variables = {
        "EDGEFACE_SERVE_LISTEN__PORT": "8443",
        "EDGEFACE_SERVE_GALLERIES__NORTH__MARGIN": "0.02",
        "EDGEFACE_SERVE_ORIGINS": "[https://door.example]",
        "EDGEFACE_SERVER": "not ours",
    }
    settings = load_settings(path, variables)
    assert (settings.listen.port, settings.origins) == (8443, ("https://door.example",))
    assert (settings.galleries["north"].fpir, settings.galleries["north"].margin) == (0.1, 0.02)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("listen: {prot: 1}", "listen.prot"),
        ("listen: {port: 70000}", "listen.port"),
        ("galleries: {a: {model: none}}", "galleries.a.model"),
        ("models: {}", "models"),
        ("listen: {host: 0.0.0.0}", "there is no tls"),
        ("- 1", "expected keys and values"),
        ("a: [", "YAML"),
        ("listen: {port: 1}\nlisten: {port: 2}", "serve.yml:2: listen: expected each key once"),
        ("limits: {workers: 0}", "limits.workers"),
    ],
)
def test_a_wrong_key_or_value_is_named(text: str, named: str, tmp_path: Path) -> None:
    path = tmp_path / "serve.yml"
    path.write_text(text)
    with pytest.raises(InputError, match=named):
        load_settings(path, {})


def test_a_variable_that_is_no_yaml_is_named_without_its_value() -> None:
    with pytest.raises(InputError, match="EDGEFACE_SERVE_STATE: expected a YAML value") as caught:
        load_settings(environ={"EDGEFACE_SERVE_STATE": "@hunter2"})
    assert "hunter2" not in str(caught.value)
