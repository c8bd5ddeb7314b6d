"""The agent's network: what is seen goes through an encoder, a core that may remember, and two linear layers for actor and critic.

Source: Le, Tran and Venkatesh, "Self-Attentive Associative Memory" (ICML 2020), and the authors' code for Pong: four convolutions
(32 of 5, 32 of 5, 64 of 4, 64 of 3), each halved by max-pooling, an LSTM cell of 256, an STM on its output, and actor and critic on
both outputs. The relational memory of STM is not kept from step to step there (``carry_relations=False``): it holds the relations
of the item memory of the moment, which is kept.

Legend: ``B`` environments, ``d`` features, ``A`` actions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fewshot_nam.memory import STM
from fewshot_nam.memory.stm import STMState

State = tuple[Tensor, ...]
"""What an agent remembers: tensors ``(B, ...)``, and none without a memory."""

MODELS = {
    "feedforward": "no memory",
    "lstm": "an LSTM cell",
    "lstm-stm": "an LSTM cell, and an STM on its output",
}


class Agent(nn.Module):
    """Logits of actions and a value for what each of ``B`` environments shows, and the state after it.

    Args:
        observation_shape: ``(F,)`` numbers, which go through a linear layer, or ``(channels, 80, 80)`` images, which go through the
            published convolutions.
        num_actions: ``A``.
        model: one of ``MODELS``.
        width: ``d``, of the encoder of numbers and of the core.
        memory: rows and columns of the memories of STM.
        slots: slots of its relational memory.
        carry_relations: keep the relational memory of STM from step to step.
        stm_options: further arguments of ``STM``, such as ``preset``.

    Raises:
        ValueError: an unknown model, or observations of another shape.

    Example:
        >>> agent = Agent((11,), num_actions=4, model="lstm", width=16)
        >>> logits, values, state = agent(torch.zeros(2, 11), agent.init_state(2))
        >>> logits.shape, values.shape
        (torch.Size([2, 4]), torch.Size([2]))
    """

    def __init__(
        self,
        observation_shape: Sequence[int],
        num_actions: int,
        model: str = "lstm-stm",
        width: int = 256,
        memory: int = 96,
        slots: int = 8,
        carry_relations: bool = False,
        **stm_options: Any,
    ) -> None:
        super().__init__()
        if model not in MODELS:
            raise ValueError(f"no agent {model!r}: there are {', '.join(MODELS)}")
        if width < 1:
            raise ValueError(f"agent: width must be at least 1, got {width}")
        self.carry_relations = carry_relations
        self.encode, encoded = _encoder(observation_shape, width)
        self.width = width
        self.hidden = nn.Sequential(nn.Linear(encoded, width), nn.ReLU()) if model == "feedforward" else None
        self.cell = nn.LSTMCell(encoded, width) if model != "feedforward" else None
        self.stm = STM(width, width, memory, slots, **stm_options) if model == "lstm-stm" else None
        features = 2 * width if self.stm is not None else width
        self.actor, self.critic = nn.Linear(features, num_actions), nn.Linear(features, 1)
        for layer, size in ((self.actor, 0.01), (self.critic, 1.0)):  # at first, all actions are about as likely
            nn.init.orthogonal_(layer.weight, size)
            nn.init.zeros_(layer.bias)

    def init_state(self, batch_size: int) -> State:
        """Return the state of ``batch_size`` environments at the begin of an episode. That of STM is learned."""
        if self.cell is None:
            return ()
        zeros = self.actor.weight.new_zeros(batch_size, self.width)
        if self.stm is None:
            return zeros, zeros
        first = self.stm.init_state(batch_size)
        return (zeros, zeros, *first) if self.carry_relations else (zeros, zeros, first.item)

    def forward(self, observations: Tensor, state: State) -> tuple[Tensor, Tensor, State]:
        """Return logits ``(B, A)``, values ``(B,)`` and the next state.

        Args:
            observations: ``(B, ...)``.
            state: of ``init_state`` or of the step before.
        """
        x = self.encode(observations)
        after: State = ()
        if self.hidden is not None:
            x = self.hidden(x)
        if self.cell is not None:
            x, kept = self.cell(x, (state[0], state[1]))
            after = (x, kept)
        if self.stm is not None:
            relational = state[3] if self.carry_relations else self.stm.init_state(len(x)).relational
            found, memories = self.stm.step(x, STMState(state[2], relational))
            x = torch.cat([x, found], dim=1)
            after = (*after, *memories) if self.carry_relations else (*after, memories.item)
        return self.actor(x), self.critic(x).squeeze(1), after

    def begin_anew(self, state: State, ends: Tensor) -> State:
        """Return ``state`` with that of ``init_state`` where ``ends`` ``(B,)`` is True: nothing is remembered across episodes."""
        if not bool(ends.any()):
            return state
        first = self.init_state(len(ends))
        return tuple(
            torch.where(ends.reshape(-1, *(1,) * (old.dim() - 1)), new, old)
            for new, old in zip(first, state, strict=True)
        )

    @property
    def num_parameters(self) -> int:
        """How many numbers are trained."""
        return sum(parameter.numel() for parameter in self.parameters() if parameter.requires_grad)


def _encoder(shape: Sequence[int], width: int) -> tuple[nn.Module, int]:
    """Return an encoder of observations, and the width of what it returns."""
    if len(shape) == 1:
        return nn.Sequential(nn.Linear(shape[0], width), nn.ReLU()), width
    if len(shape) != 3 or tuple(shape[1:]) != (80, 80):
        raise ValueError(f"agent: observations must be (F,) numbers or (channels, 80, 80) images, got {tuple(shape)}")
    layers: list[nn.Module] = []
    channels = shape[0]
    for filters, size, padding in ((32, 5, 2), (32, 5, 1), (64, 4, 1), (64, 3, 1)):
        # The largest first: then there are fewer to rectify.
        layers += [nn.Conv2d(channels, filters, size, padding=padding), nn.MaxPool2d(2), nn.ReLU()]
        channels = filters
    return nn.Sequential(*layers, nn.Flatten()), 64 * 4 * 4
