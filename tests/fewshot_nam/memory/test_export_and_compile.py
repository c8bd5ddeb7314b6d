"""Exported networks take any batch and, but for the Turing machine, any length; compiled ones do not recompile per length (Z5)."""

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.export import Dim, export

from fewshot_nam.memory import LSAM, STM, NAMLanguageModel, NAMTransformerEncoderLayer, NAMTuringMachine

WIDTH = 8
NETWORKS = {
    "attention": lambda: NAMTransformerEncoderLayer(WIDTH, 2, 16, batch_first=True),
    "attention with erase": lambda: NAMTransformerEncoderLayer(WIDTH, 2, 16, batch_first=True, erase=True, conv_size=2),
    "attention with two hard writes": lambda: NAMTransformerEncoderLayer(
        *(WIDTH, 2, 16), batch_first=True, erase=True, gates=True, max_erase=2.0, gate="hard", writes_per_token=2
    ),
    "LSAM": lambda: LSAM(WIDTH, WIDTH, 2, num_heads=2, batch_first=True, bidirectional=True),
    "Turing machine": lambda: NAMTuringMachine(WIDTH, 2, tape_length=16),
    "STM": lambda: STM(WIDTH, WIDTH, WIDTH, 2),
}
UNROLLED = ("Turing machine", "STM")  # step by step, so that an export fixes the length


class Outputs(nn.Module):
    """A causal network from tokens to outputs alone."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        attends = isinstance(self.network, NAMTransformerEncoderLayer)
        outputs = self.network(x, is_causal=True) if attends else self.network(x)
        return outputs[0] if isinstance(outputs, tuple) else outputs


def network(name: str) -> Outputs:
    torch.manual_seed(0)
    return Outputs(NETWORKS[name]()).eval()


@pytest.mark.parametrize("name", NETWORKS)
def test_an_export_with_a_dynamic_batch_takes_any_batch(name):
    built = network(name)
    program = export(built, (torch.randn(2, 9, WIDTH),), dynamic_shapes=({0: Dim("batch")},)).module()
    for batch in (1, 2, 5):
        x = torch.randn(batch, 9, WIDTH)
        torch.testing.assert_close(program(x), built(x))


@pytest.mark.parametrize("name", [name for name in NETWORKS if name not in UNROLLED])
def test_an_export_with_a_dynamic_length_takes_any_length(name):
    built = network(name)
    dims = ({0: Dim("batch"), 1: Dim("length", max=4096)},)
    program = export(built, (torch.randn(2, 70, WIDTH),), dynamic_shapes=dims).module()
    for shape in ((2, 70), (1, 33), (3, 2), (2, 300)):
        x = torch.randn(*shape, WIDTH)
        torch.testing.assert_close(program(x), built(x), msg=str(shape))


@pytest.mark.parametrize("name", UNROLLED)
def test_a_network_that_runs_step_by_step_says_that_its_export_fixes_the_length(name):
    with pytest.raises(ValueError, match="an export fixes the number of steps T: make that dimension of x static"):
        export(network(name), (torch.randn(2, 9, WIDTH),), dynamic_shapes=({1: Dim("length")},))


@pytest.mark.parametrize("name", [name for name in NETWORKS if name not in UNROLLED])
def test_a_compiled_network_compiles_at_most_twice_for_many_lengths(name):
    built, counter = network(name), CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(built, backend=counter, fullgraph=True)
    for length in (150, 33, 64, 70, 128, 129, 300, 47):
        x = torch.randn(2, length, WIDTH, requires_grad=True)
        expected = built(x)
        outputs = compiled(x)
        torch.testing.assert_close(outputs, expected)
        found = torch.autograd.grad(outputs.square().sum(), [x, *built.parameters()])
        wanted = torch.autograd.grad(expected.square().sum(), [x, *built.parameters()])
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    assert counter.frame_count <= 2


def test_a_language_model_exports_with_any_length():
    torch.manual_seed(0)
    model = NAMLanguageModel(11, WIDTH, 2, 2).eval()
    dims = ({0: Dim("batch"), 1: Dim("length", max=4096)},)
    program = export(model, (torch.zeros(2, 9, dtype=torch.int64),), dynamic_shapes=(*dims, None)[:1]).module()
    tokens = torch.randint(11, (3, 45))
    torch.testing.assert_close(program(tokens), model(tokens))


@pytest.mark.parametrize("gated", [False, True])
def test_the_scan_describes_itself_to_torch(gated):
    torch.manual_seed(0)
    tensors = [torch.randn(2, 45, 2, size, dtype=torch.float64, requires_grad=True) for size in (3, 3, 4, 1, 1, 1)]
    if not gated:
        tensors[3] = tensors[5] = None
    state = torch.randn(4, 3, 4, dtype=torch.float64, requires_grad=True)
    torch.library.opcheck(torch.ops.fewshot_nam.memory_scan.default, (*tensors, state, 32))
