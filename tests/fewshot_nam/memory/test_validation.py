"""Arguments that are no plain tensors of floats: one line names the function and the argument."""

import pytest
import torch

from fewshot_nam.memory import memory_scan, read, unit, write, write_block, write_sequence

FORMS = {
    "complex64": lambda x: x.to(torch.complex64),
    "qint8": lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.qint8),
    "bool": lambda x: x > 0,
    "sparse_coo": lambda x: x.to_sparse(),
    "_mkldnn": lambda x: x.to_mkldnn(),
    "nested": lambda x: torch.nested.nested_tensor([x[0], x[1]]),
    "nested jagged": lambda x: torch.nested.nested_tensor([x[0], x[1]], layout=torch.jagged),
}


@pytest.mark.filterwarnings("ignore")  # of PyTorch, that nested tensors may change
@pytest.mark.parametrize("form", FORMS)
def test_arguments_of_another_kind_are_named(form):
    values = torch.randn(2, 5, 3, 4, generator=torch.Generator().manual_seed(0))
    with pytest.raises(TypeError, match=rf"^memory_scan: k must be [^\n]*{form.split()[0]}[^\n]*$"):
        memory_scan(values, FORMS[form](values), values)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("form", FORMS)
def test_arguments_of_primitives_of_another_kind_are_named(form):
    """Errors of PyTorch's came through, such as "Could not run 'aten::as_strided'"."""
    generator = torch.Generator().manual_seed(0)
    memory, rows = torch.randn(2, 8, 8, generator=generator), torch.randn(2, 5, 8, generator=generator)
    odd_memory, odd_rows = FORMS[form](memory), FORMS[form](rows)
    for call, named in (
        (lambda: unit(odd_rows), "unit: x"),
        (lambda: read(odd_memory, rows[:, 0]), "read: memory"),
        (lambda: write(odd_memory, rows[:, 0], rows[:, 0]), "write: memory"),
        (lambda: write_block(memory, odd_rows, rows), "write_block: keys"),
        (lambda: write_sequence(memory, rows, odd_rows), "write_sequence: values"),
    ):
        with pytest.raises(TypeError, match=rf"^{named} must be [^\n]*{form.split()[0]}[^\n]*$"):
            call()
