"""What stage train makes of its settings before it trains."""

import json

import click
import pytest

from data.manifest import write_manifest
from pipeline.train import with_audited_noise
from rl.tables import KIND
from tests.support.training import config


@pytest.fixture
def audited(tmp_path):
    """The config of objective dpo on pairs of source `judge`, of whose audit these figures are recorded."""
    rows = tmp_path / "rows"
    rows.mkdir()
    write_manifest(rows, KIND, source="judge")

    def of(figures: dict | None):
        found = {"false_accept_rate": None, "false_reject_rate": None, "decided_accuracy": None}
        (tmp_path / "audits.json").write_text(json.dumps({"judge": None if figures is None else found | figures}))
        return with_audited_noise(config("dpo", label_noise="from_audit"), rows, tmp_path / "audits.json")

    return of


def test_label_noise_is_taken_from_the_audit_of_the_source(audited):
    """Rates .2 and .2 are a share of .2; a source that compares says itself how many of its preferences are right."""
    rates = {"false_accept_rate": 0.2, "false_reject_rate": 0.2}
    assert audited(rates) == config("dpo", label_noise=0.2)
    assert audited({"decided_accuracy": 0.9}).label_noise == pytest.approx(0.1)


def test_an_audit_that_is_missing_or_says_too_little_is_an_error_with_the_cure(audited):
    for figures, error in (
        (None, r"judge has no audit: name it in audit\.sources, run `dvc repro audit@judge`, then `dvc repro`"),
        ({"false_reject_rate": 0.1}, "both rates are needed"),
        ({"decided_accuracy": 0.4}, r"orders 60\.0 % of its pairs wrongly"),
    ):
        with pytest.raises(click.ClickException, match=error):
            audited(figures)


def test_a_number_needs_no_audit(tmp_path):
    for settings in (config("dpo", label_noise=0.1), config("rwr")):
        assert with_audited_noise(settings, tmp_path / "nowhere", tmp_path / "no audits") is settings
