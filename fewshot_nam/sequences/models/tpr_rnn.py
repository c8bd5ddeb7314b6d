"""TPR-RNN: a memory of third-order tensor products, which binds two entities by relations.

Source: Schlag and Schmidhuber, "Learning to Reason with Third-Order Tensor Products" (2018), section 3. With a memory ``F (E
x R x E)`` and its read ``F(e, r) = sum_ij e_i r_j F_ij``, an input gives entities ``e_1, e_2`` and relations ``r_1, r_2,
r_3`` by perceptrons, and

    w = F(e_1, r_1)    m = F(e_1, r_2)    b = F(e_2, r_3)                         what is bound already
    F <- F + e_1 r_1 (e_2 - w) + e_1 r_2 (w - m) + e_2 r_3 (e_1 - b)              write, move, and link back

(products of three vectors are outer products). The answer follows three reads, each from what the last one found, with an
entity ``n`` and relations ``l_1, l_2, l_3`` of perceptrons of their own: ``i_1 = norm(F(n, l_1))``, ``i_2 = norm(F(i_1,
l_2))``, ``i_3 = norm(F(i_2, l_3))``; the output is their sum.

Departure: the paper writes sentences and then reads with a question. Here every input is written and then reads, so that a
task may ask anywhere.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fewshot_nam.sequences.models.model import SequenceModel
from fewshot_nam.sequences.models.registry import register
from fewshot_nam.sequences.tasks.task import SequenceTask

_SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"width": 16, "entity": 8, "relation": 4, "hidden": 16},
    "small": {"width": 64, "entity": 32, "relation": 16, "hidden": 64},
    "paper": {"width": 64, "entity": 90, "relation": 20, "hidden": 80},  # as in the code of the STM paper, for bAbI
}


@register("tpr-rnn", "TPR-RNN: a memory of third-order tensor products of entities and relations", _SIZES)
class TPRRNNModel(SequenceModel):
    """A network with a memory of third-order tensor products; it reads forward.

    Args:
        task: see ``SequenceModel``.
        width: of the embedding.
        entity: ``E``, width of an entity, and of the output.
        relation: ``R``, width of a relation.
        hidden: width of the hidden layer of a perceptron.
        dropout: probability of dropping a feature of the embedding.
    """

    causal = True

    def __init__(
        self, task: SequenceTask, width: int, entity: int, relation: int, hidden: int, dropout: float = 0.0
    ) -> None:
        super().__init__(task, width, entity)
        self.entity, self.relation = entity, relation
        self.entities = nn.ModuleList(_perceptron(width, hidden, entity) for _ in range(3))
        self.relations = nn.ModuleList(_perceptron(width, hidden, relation) for _ in range(6))
        self.norms = nn.ModuleList(nn.LayerNorm(entity) for _ in range(3))
        self.dropout = nn.Dropout(dropout)

    def _encode(self, x: Tensor, mask: Tensor) -> Tensor:
        x = self.dropout(x)
        entities, relations = [net(x) for net in self.entities], [net(x) for net in self.relations]
        # What is written is the product of an address, entity and relation, with a value. (B, T, E R) each.
        addresses = [
            torch.einsum("bte,btr->bter", entities[e], relations[r]).flatten(2) for e, r in ((0, 0), (0, 1), (1, 2))
        ]
        writes = torch.stack(addresses, dim=2)  # (B, T, 3, E R)
        memory = x.new_zeros(len(x), writes.shape[-1], self.entity)
        outputs = []
        for step in range(x.shape[1]):
            first, second, asked = (part[:, step] for part in entities)
            bound, moved, back = (writes[:, step] @ memory).unbind(1)
            values = torch.stack([second - bound, bound - moved, first - back], dim=1)
            memory = memory + writes[:, step].mT @ values
            total = torch.zeros_like(first)
            for norm, relation in zip(self.norms, relations[3:], strict=True):
                address = torch.einsum("be,br->ber", asked, relation[:, step]).flatten(1)
                asked = norm((address.unsqueeze(1) @ memory).squeeze(1))
                total = total + asked
            outputs.append(total)
        return torch.stack(outputs, dim=1)


def _perceptron(width: int, hidden: int, out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, hidden), nn.Tanh(), nn.Linear(hidden, out), nn.Tanh())
