"""What models/ does on a device, on one that has shapes alone: see tests/device_audit.py."""

import pytest
import torch

from tests.device_audit import DeviceAudit, pretended, ranked, scored, shown, trained

pytestmark = pytest.mark.filterwarnings("ignore:for .* copying from a non-meta parameter")
SAMPLED = {"loss": "sampled_softmax", "negatives": 8}
VISITS = {"session": 3_600_000_000, "horizon": 10**11}


@pytest.fixture
def audit(monkeypatch):
    with pretended(DeviceAudit("meta"), monkeypatch) as audit:
        yield audit


def kinds(audit):
    return {(kind, operation.partition(".")[2].partition(".")[0]) for _, kind, operation, _ in audit.findings}


def serious(audit):
    """Findings, waits outside of training steps apart."""
    return shown({key: number for key, number in audit.findings.items() if key[:2] != ("elsewhere", "waits")})


def test_what_an_audit_finds(audit):
    there = torch.arange(6.0, device="meta")
    assert not audit.findings
    there[2].item()
    assert kinds(audit) == {("waits", "_local_scalar_dense")}
    assert len(there[there > 3]) == 0
    there.double()
    with pytest.raises(RuntimeError, match="device"):
        there + torch.ones(6)
    assert there[torch.tensor([1, 2])].is_meta  # torch lets it pass, and waits for it
    assert (there + 2.0).is_meta
    there.cpu()
    torch.ones(6).to("meta")
    assert kinds(audit) == {
        ("waits", "_local_scalar_dense"),
        ("waits", "index"),
        ("float64", "_to_copy"),
        ("mixes devices", "add"),
        ("mixes devices", "index"),
        ("waits", "_to_copy"),
    }
    assert sum(audit.findings.values()) == 7


@pytest.mark.parametrize(
    ("encoder", "train", "more"),
    [
        ({"time_bias": True, "calendar": True, "value": True}, {"ema_decay": 0.9, "accumulate": 2}, {}),
        pytest.param({"block": "hstu", "time_bias": True}, SAMPLED, {}, marks=pytest.mark.slow),
        pytest.param({"block": "gru", "item_content": True}, {}, {}, marks=pytest.mark.slow),
        ({"readout": "target"}, {"loss": "bce", "negatives": 8}, VISITS),
        ({"num_blocks": 1}, {"predict": "visit"}, VISITS),
        pytest.param({"direction": "bidirectional"}, {"targets": "last"}, {}, marks=pytest.mark.slow),
    ],
)
def test_a_training_step_neither_waits_nor_mixes_devices(audit, encoder, train, more):
    trained(encoder, {"precision": "fp32"} | train, **more)
    assert sum(audit.operations.values()) > 100
    assert not serious(audit)
    # a checkpoint of the best weights, the check of all weights and one read of all losses are an epoch's
    assert any("_read" in place for _, kind, _, place in audit.findings if kind == "waits")


@pytest.mark.slow
def test_scoring_explaining_and_ranking_mix_no_devices(audit):
    scored(trained({}, {"precision": "fp32"}))
    ranked("meta")
    ranked("meta", loss="pointwise")
    assert not serious(audit)
