"""Arguments that are no plain tensors of floats: one line names the function and the argument."""

import pytest
import torch

from fewshot_nam.memory import memory_scan

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
