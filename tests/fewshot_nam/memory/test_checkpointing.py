"""Activation checkpointing (``use_reentrant=False``) works through every memory network, with unchanged gradients (Z2)."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from fewshot_nam.memory import LSAM, STM, NAMTransformerEncoderLayer, NAMTuringMachine, memory_scan, unit

pytestmark = pytest.mark.usefixtures("either")
F64 = torch.float64

NETWORKS = {
    "LSAM": lambda: LSAM(8, 8, num_heads=2, batch_first=True, dtype=F64),
    "causal layer": lambda: NAMTransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True, dtype=F64),
    "erasing layer": lambda: NAMTransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True, erase=True, dtype=F64),
    "Turing machine": lambda: NAMTuringMachine(8, 2, dtype=F64),
    "STM": lambda: STM(8, 8, 8, 2, dtype=F64),
    "Turing machine, no jump": lambda: NAMTuringMachine(8, 2, actions=("left", "right"), dtype=F64),
}


def outputs_of(network: nn.Module, x: torch.Tensor) -> torch.Tensor:
    outputs = network(x, is_causal=True) if isinstance(network, NAMTransformerEncoderLayer) else network(x)
    return outputs[0] if isinstance(outputs, tuple) else outputs


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_under_checkpointing_has_the_same_gradients(name):
    torch.manual_seed(0)
    network = NETWORKS[name]()
    x = torch.randn(2, 140, 8, dtype=F64, requires_grad=True)  # two segments of the scan
    leaves = [x, *network.parameters()]
    expected = torch.autograd.grad(outputs_of(network, x).square().sum(), leaves)
    outputs = checkpoint(outputs_of, network, x, use_reentrant=False)
    assert torch.equal(outputs, outputs_of(network, x))
    found = torch.autograd.grad(outputs.square().sum(), leaves)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("backend", ["loop", "chunk", "chunk-autograd"])
def test_a_scan_under_checkpointing_has_the_same_gradients(backend):
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 140, 2, 4, dtype=F64).unbind(0)
    leaves = [x.detach().requires_grad_() for x in (unit(q), unit(k), v)]

    def scan(*tensors: torch.Tensor) -> torch.Tensor:
        return memory_scan(*tensors, 0.9, 0.8, 0.7, backend=backend)[0]

    expected = torch.autograd.grad(scan(*leaves).square().sum(), leaves)
    found = torch.autograd.grad(checkpoint(scan, *leaves, use_reentrant=False).square().sum(), leaves)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("name", NETWORKS)
def test_zero_tokens_give_small_gradients(name):
    """A zero token has a key and a query of 0 in a fresh network without a bias; their gradient was 1e12 (Z1)."""
    torch.manual_seed(0)
    network = NETWORKS[name]()
    with torch.no_grad():
        for key, parameter in network.named_parameters():
            if "bias" in key:
                parameter.zero_()
    x = torch.randn(2, 9, 8, dtype=F64)
    x[:, 3:6] = 0.0
    x.requires_grad_()
    outputs = outputs_of(network, x)
    gradients = torch.autograd.grad((outputs * torch.randn_like(outputs)).sum(), [x, *network.parameters()])
    assert max(gradient.abs().max() for gradient in gradients) < 1e7  # two layer norms of zeros give 1e5
