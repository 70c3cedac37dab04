"""torch's flex_attention, forward, against the layer's formula, and the blocks of columns that it visits."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn.attention.flex_attention import create_block_mask

from models.encoder.attention import HistoryAttention
from models.encoder.attention_bias import AttentionGeometry, full_geometry
from models.encoder.batching import Window
from models.encoder.flexible_attention import block_mask
from models.settings.encoder import EncoderSettings

ROOT = Path(__file__).resolve().parents[3]


def places(lengths: list[int], columns: int, **settings: object) -> AttentionGeometry:
    zeros = torch.zeros(len(lengths), columns, dtype=torch.int32)
    return full_geometry(Window(zeros, zeros, torch.tensor(lengths)), EncoderSettings(**settings))  # type: ignore[arg-type]


@pytest.mark.parametrize("settings", [{}, {"window": 60}, {"window": 129}, {"window": 130}, {"window": 300}])
def test_blocks_that_some_column_sees(settings):
    geometry = places([500, 390], 500, **settings)
    found = block_mask(geometry)
    column = torch.arange(500)
    behind = column.unsqueeze(1) - column
    seen = (behind >= 0) & (behind < settings.get("window", 500))
    expected = create_block_mask(lambda _b, _h, q, k: seen[q, k], None, None, 500, 500, device="cpu")
    assert torch.equal(found.to_dense(), expected.to_dense())


def test_blocks_of_rows_seen_whole():
    found = block_mask(places([300, 128, 0], 300, direction="bidirectional")).to_dense()
    assert found[:, 0].tolist() == [[[1, 1, 1]] * 3, [[1, 0, 0]] * 3, [[1, 0, 0]] * 3]


FORWARD = """
import warnings
import torch
import torch._inductor.config
from models.encoder import flexible_attention
from models.encoder.attention import HistoryAttention
from models.encoder.attention_bias import full_geometry
from models.encoder.batching import Window
from models.settings.encoder import EncoderSettings

warnings.simplefilter("ignore", UserWarning)  # that nothing is fused outside torch.compile
torch.manual_seed(0)
zeros = torch.zeros(2, 150, dtype=torch.int32)
time = torch.randint(1, 10**14, (2, 150)).cumsum(1)
window = Window(zeros, zeros, torch.tensor([150, 70]), time=time, request_time=time + 10**9)
for sight in ({}, {"window": 20}, {"direction": "bidirectional"}):
    for settings in ({"positions": "none"}, {"time_bias": True}, {"time_bias": True, "request_time": True}):
        chosen = EncoderSettings(**{"dim": 32, **settings, **sight})
        layer = HistoryAttention(chosen)
        for parameter in layer.parameters():
            torch.nn.init.normal_(parameter)
        layer.requires_grad_(False)
        geometry = full_geometry(window, chosen)
        parts = [torch.randn(2, 2, 150, 16) for _ in range(3)]
        for dtype in (torch.float32, torch.bfloat16):
            given = [part.to(dtype) for part in parts]
            queries, keys = layer._transformed(*given[:2], geometry)
            tables = [None if table is None else table.to(dtype) for table in layer._tables]
            found = flexible_attention.flexible(queries, keys, given[2], geometry, *tables)
            exact = HistoryAttention(chosen, "reference").double()
            plain = HistoryAttention(chosen, "reference").to(dtype)
            for other in (exact, plain):
                other.load_state_dict({name: weight.to(dtype) for name, weight in layer.state_dict().items()})
            expected = exact(*(part.double() for part in given), geometry)
            error = (plain(*given, geometry).double() - expected).norm()
            assert found.dtype == dtype
            assert (found.double() - expected).norm() <= 2 * error, (sight, settings, dtype)
"""


@pytest.mark.slow
def test_the_forward_pass_is_as_exact_as_the_formula_at_its_precision():
    # in a process of its own: what checks shapes at every call cannot be traced
    done = subprocess.run(
        [sys.executable, "-c", FORWARD], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("settings", "length", "expected"),
    [
        ({}, 40, "dense"),
        ({}, 41, "blocked"),
        ({"positions": "none"}, 41, "dense"),
        ({"positions": "none", "window": 7}, 41, "blocked"),
        ({"positions": "none", "direction": "bidirectional"}, 41, "blocked"),
        ({"weighting": "silu", "positions": "none"}, 41, "blocked"),
        ({"attention": "dense"}, 41, "dense"),
        ({"attention": "blocked"}, 2, "blocked"),
        ({"attention": "flex"}, 2, "blocked"),
    ],
)
def test_forms_on_the_cpu(settings, length, expected, monkeypatch):
    monkeypatch.setattr("models.encoder.attention.DENSE_COLUMNS", 40)
    layer = HistoryAttention(EncoderSettings(**settings))
    assert layer.form(torch.zeros(1, 2, length, 32), places([length], length, **settings)) == expected


@pytest.mark.parametrize(
    ("settings", "triton", "expected"),
    [
        ({}, True, "flex"),
        ({}, False, "blocked"),
        ({"weighting": "silu"}, True, "blocked"),
        ({"dim": 16}, True, "blocked"),
        ({"positions": "none"}, True, "dense"),
        ({"attention": "flex", "positions": "none"}, True, "flex"),
    ],
)
def test_forms_on_cuda(settings, triton, expected, monkeypatch):
    monkeypatch.setattr("models.encoder.attention.DENSE_COLUMNS", 40)
    monkeypatch.setattr("models.encoder.flexible_attention.HAS_TRITON", triton)
    with torch._subclasses.fake_tensor.FakeTensorMode():
        values = torch.empty(1, 2, 41, settings.get("dim", 64) // 2, device="cuda")
    layer = HistoryAttention(EncoderSettings(**settings))
    assert layer.form(values, places([41], 41, **settings)) == expected
