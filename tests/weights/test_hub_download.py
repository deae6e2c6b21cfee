"""Errors of the network below the Hub become one sentence, and errors of anything else stay what they are."""

import pytest

from timm_mvhybrid.weights.hub_download import HubError, explain


def test_the_users_token_is_taken_out_of_what_others_wrote(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secretOfMine")
    error = explain(OSError("the proxy refused Bearer hf_secretOfMine"), "our-lab/x", "our-lab/x/config.json")
    assert "the proxy refused Bearer ***" in str(error)
    assert "hf_secretOfMine" not in str(error)


def test_only_the_first_line_of_an_error_is_shown():
    assert "\n" not in str(explain(OSError("first\nsecond"), "our-lab/x", "our-lab/x/config.json"))


def test_a_bug_is_not_blamed_on_the_network():
    with pytest.raises(ZeroDivisionError):
        explain(ZeroDivisionError("a bug"), "our-lab/x", "our-lab/x/config.json")
    assert isinstance(explain(ConnectionError("gone"), "our-lab/x", "our-lab/x/config.json"), HubError)
