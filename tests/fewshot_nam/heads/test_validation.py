"""Features that are no plain tensors of floats: one line names them, at every entry of a head."""

import pytest
import torch

from fewshot_nam.heads import CosineHead
from fewshot_nam.heads.validation import check_type

VALUES = torch.randn(2, 3, 2, 8, generator=torch.Generator().manual_seed(0))
FORMS = {
    "complex64": lambda x: x.to(torch.complex64),
    "qint8": lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.qint8),
    "bool": lambda x: x > 0,
    "sparse_coo": lambda x: x.to_sparse(),
    "_mkldnn": lambda x: x.to_mkldnn(),
    "nested": lambda x: torch.nested.nested_tensor([x[0], x[1]]),
    "nested jagged": lambda x: torch.nested.nested_tensor([x[0], x[1]], layout=torch.jagged),
    "meta": lambda x: x.to("meta"),
}


@pytest.mark.filterwarnings("ignore")  # of PyTorch, that nested tensors may change
@pytest.mark.parametrize("form", FORMS)
def test_features_of_another_kind_are_named(form):
    """An error of PyTorch's came through, such as "Could not run 'aten::linalg_vector_norm.out'"."""
    name = form.split()[0]
    episodes, queries, rows = (FORMS[form](values) for values in (VALUES, VALUES[:, 0], VALUES[0, 0]))
    head = CosineHead().write(VALUES[0, 0], ["a", "b"])
    wrong = rf"must be a (plain )?float tensor, got [^\n]*{name}[^\n]*$"
    for call in (
        lambda: head.write(rows, ["a", "b"]),
        lambda: head(rows),
        lambda: head.calibrate(rows, target_fpr=0.1),
        lambda: head.score_episodes(episodes, VALUES[:, 0]),
        lambda: head.score_episodes(VALUES, queries),
    ):
        with pytest.raises(TypeError, match=wrong):
            call()


def test_plain_tensors_of_floats_pass():
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        check_type(VALUES.to(dtype).transpose(0, 1), "features")
