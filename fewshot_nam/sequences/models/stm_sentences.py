"""STM over sentences, with a question that reads its relations in three hops: the network of the STM paper for bAbI.

Source: Le, Tran and Venkatesh, "Self-Attentive Associative Memory" (ICML 2020), and the authors' code, whose reading is that of
TPR-RNN (Schlag and Schmidhuber, 2018). Of the words ``w_i`` of a sentence, ``s = sum_i p_i * w_i`` with a learned ``p_i`` for each
place. STM writes the sentences before a question; then, with the relations ``R (n x d x d)`` that it holds, ``R(e, l) = sum_ij l_i
e_j R_ij``, and an entity ``e`` and ``l_1, l_2, l_3`` that perceptrons make of the question::

    i_1 = norm(R(e, l_1))     i_2 = norm(R(i_1, l_2))     i_3 = norm(R(i_2, l_3))     answer: linear in i_1 + i_2 + i_3

Departures: the answer's weights are trained (in the code they are not), and every sentence is a question to the sentences before
it, so that a task may ask anywhere. Sentences end at ``.`` and ``?``; in a task without both of these words, every token or row is
a sentence.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fewshot_nam.memory import STM, STMState
from fewshot_nam.sequences.models.model import SequenceModel
from fewshot_nam.sequences.models.registry import register
from fewshot_nam.sequences.tasks.task import SequenceTask

_SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"width": 16, "memory": 8, "slots": 2, "hidden": 16},
    "small": {"width": 64, "memory": 32, "slots": 8, "hidden": 64},
    "paper": {"width": 64, "memory": 90, "slots": 20, "hidden": 80},
}


@register("stm-sentences", "STM over sentences, whose relations a question reads in three hops (for bAbI)", _SIZES)
class SentenceSTMModel(SequenceModel):
    """STM over sentences, with answers at the words of a sentence from the relations of the sentences before it.

    Args:
        task: see ``SequenceModel``.
        width: of the embedding of words and sentences.
        memory: ``d``, rows and columns of the memories.
        slots: ``n``, slots of the relational memory.
        hidden: width of the hidden layer of a perceptron.
        dropout: probability of dropping a feature of a sentence.
        longest: how many places in a sentence have weights of their own; words behind share the last.
        alphas: of ``STM``; as published, all relations are kept, and there is no transfer.
    """

    ends: Tensor

    def __init__(
        self,
        task: SequenceTask,
        width: int,
        memory: int,
        slots: int,
        hidden: int,
        dropout: float = 0.0,
        longest: int = 16,
        alphas: Sequence[float | None] = (1.0, None, 0.0),
    ) -> None:
        super().__init__(task, width, memory)
        words = () if task.input_size is not None else list(task.vocabulary)
        ends = [words.index(end) for end in (".", "?")] if {".", "?"} <= set(words) else []
        self.register_buffer("ends", torch.tensor(ends, dtype=torch.long), persistent=False)
        self.places = nn.Parameter(torch.full((longest, width), 1 / longest if ends else 1.0))
        first, second, third = alphas
        self.stm = STM(width, 1, memory, slots, alphas=(first, second, third))
        del self.stm.read_slot, self.stm.join_slots, self.stm.output  # questions read the relations themselves
        self.dropout = nn.Dropout(dropout)
        self.entity = _perceptron(width, hidden, memory)
        self.relations = nn.ModuleList(_perceptron(width, hidden, slots) for _ in range(3))
        self.norms = nn.ModuleList(nn.LayerNorm(memory) for _ in range(3))

    def _encode_inputs(self, inputs: Tensor, mask: Tensor, steps: Tensor | None) -> Tensor:
        number, place = self._sentences(inputs, mask)
        words = self.embed(inputs) * self.places[place.clamp_max(len(self.places) - 1)] * mask.unsqueeze(-1)
        count = int(number.max()) + 1
        wide = number.unsqueeze(-1)
        sentences = words.new_zeros(len(words), count, words.shape[-1]).scatter_add(1, wide.expand_as(words), words)
        sentences = self.dropout(sentences)
        there = torch.zeros(len(words), count, dtype=torch.bool, device=mask.device).scatter(1, number, mask)
        asked = torch.ones_like(mask[0]) if steps is None else steps
        needed = torch.zeros(count, dtype=torch.bool, device=mask.device)
        needed[number[:, asked].flatten()] = True
        silent = torch.zeros(1, dtype=torch.bool, device=mask.device)

        state = self.stm.init_state(len(words))
        answers = []
        for t in range(count):
            question = sentences[:, t]
            answers.append(self._answer(question, state) if needed[t] else question.new_zeros(len(words), self.width))
            if t + 1 < count:
                written = sentences[:, t : t + 1]
                _, state = self.stm(written, state, there[:, t : t + 1], output_steps=silent)
        return torch.stack(answers, dim=1).gather(1, wide.expand(-1, -1, self.width))

    @property
    def width(self) -> int:
        """Features at a word, ``d``."""
        return self.stm.memory_size

    def _sentences(self, inputs: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return the number of the sentence of each token and its place in it, ``(B, T)`` each."""
        times = torch.arange(mask.shape[1], device=mask.device).expand(mask.shape)
        if not len(self.ends):
            return times, torch.zeros_like(times)
        ends = torch.isin(inputs, self.ends)
        begins = torch.cat([torch.zeros_like(ends[:, :1]), ends[:, :-1]], dim=1)
        # Padding stays in the last sentence, where it is multiplied by 0.
        number = (begins & mask).cumsum(1)
        return number, times - torch.where(begins, times, 0).cummax(1).values

    def _answer(self, question: Tensor, state: STMState) -> Tensor:
        """Return what questions ``(B, width)`` find in the relations of a state, ``(B, d)``."""
        found = self.entity(question)
        total = torch.zeros_like(found)
        for relation, norm in zip(self.relations, self.norms, strict=True):
            address = relation(question).unsqueeze(2) * found.unsqueeze(1)  # (B, n, d)
            found = norm((address.flatten(1).unsqueeze(1) @ state.relational.flatten(1, 2)).squeeze(1))
            total = total + found
        return total


def _perceptron(width: int, hidden: int, out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, hidden), nn.Tanh(), nn.Linear(hidden, out), nn.Tanh())
