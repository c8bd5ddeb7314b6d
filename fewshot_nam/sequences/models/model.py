"""What every sequence model is: tokens or vectors in, logits over the vocabulary out, padding ignored.

Legend: ``B`` sequences, ``T`` tokens or rows, ``F`` numbers in a row, ``d`` features, ``A`` answers at a position, ``V`` words of
the vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from fewshot_nam.sequences.tasks.task import SequenceTask


class SequenceModel(nn.Module):
    """An embedding, a body that a subclass gives as ``_encode``, and a linear classifier over the vocabulary.

    Vectors are embedded by a linear layer. Where a position has several answers, the classifier gives logits for each.

    Args:
        task: whose vocabulary, padding and sizes it has.
        embedding_dim: width of the embedding.
        width: ``d``, width of what ``_encode`` returns.

    Attributes:
        causal: whether the logits at a position depend on the inputs up to there alone.
    """

    causal: bool = False

    def __init__(self, task: SequenceTask, embedding_dim: int, width: int) -> None:
        super().__init__()
        self.pad = task.pad
        self.input_size, self.target_size = task.input_size, task.target_size
        self.embed: nn.Module
        if task.input_size is None:
            self.embed = nn.Embedding(len(task.vocabulary), embedding_dim)
        else:
            self.embed = nn.Linear(task.input_size, embedding_dim)
        self.classify = nn.Linear(width, (task.target_size or 1) * len(task.vocabulary))

    def forward(self, inputs: Tensor, asked: Tensor | None = None) -> Tensor:
        """Return logits ``(B, T, V)``; what stands behind a sequence changes nothing before it.

        Args:
            inputs: tokens ``(B, T)`` long, or for a task with vectors ``(B, T, F)`` float.
            asked: ``(B, T)`` bool, True where logits are needed. Some models are faster where few are; the logits of steps at
                which no sequence is asked are then undefined. Default: everywhere.

        Returns:
            ``(B, T, V)``, or for a task with several answers at a position ``(B, T, A, V)``.

        Raises:
            ValueError: inputs of another shape or kind.
        """
        if self.input_size is None:
            if inputs.dim() != 2 or inputs.dtype != torch.long:
                raise ValueError(
                    f"{type(self).__name__}: tokens must be (B, T) long, got {tuple(inputs.shape)} {inputs.dtype}"
                )
            present = inputs != self.pad
        else:
            if inputs.dim() != 3 or inputs.shape[-1] != self.input_size or not inputs.is_floating_point():
                raise ValueError(
                    f"{type(self).__name__}: vectors must be (B, T, {self.input_size}) of a floating dtype, got "
                    f"{tuple(inputs.shape)} {inputs.dtype}"
                )
            present = inputs[..., -1] == 0
        steps = None if asked is None else asked.any(dim=0)
        logits: Tensor = self.classify(self._encode_inputs(inputs, present, steps))
        return logits if self.target_size is None else torch.unflatten(logits, -1, (self.target_size, -1))

    def _encode(self, x: Tensor, mask: Tensor) -> Tensor:
        """Return features ``(B, T, d)`` of embedded tokens ``(B, T, E)``; ``mask`` ``(B, T)`` is False on padding."""
        raise NotImplementedError

    def _encode_inputs(self, inputs: Tensor, mask: Tensor, steps: Tensor | None) -> Tensor:
        """Return features ``(B, T, d)`` of ``inputs``; see ``_encode_steps``."""
        return self._encode_steps(self.embed(inputs), mask, steps)

    def _encode_steps(self, x: Tensor, mask: Tensor, steps: Tensor | None) -> Tensor:
        """Return what ``_encode`` does; only the features of ``steps``, ``(T,)`` bool, are used. ``None``: of all steps."""
        return self._encode(x, mask)

    def init_state(self, batch_size: int) -> Any:
        """Return the state of ``batch_size`` sequences before their first token.

        Raises:
            ValueError: the model cannot run token by token.
        """
        raise ValueError(f"{type(self).__name__} cannot run token by token")

    def extend(self, tokens: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Return the logits ``(B, T, V)`` after further tokens ``(B, T)``, and the state after them.

        A state may change: go on from what is returned alone.

        Raises:
            ValueError: the model cannot run token by token.
        """
        features, state = self._extend(self.embed(tokens), state)
        return self.classify(features), state

    def step(self, tokens: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Return the logits ``(B, V)`` after one further token ``(B,)`` of every sequence, and the state; see ``extend``."""
        logits, state = self.extend(tokens.unsqueeze(1), state)
        return logits.squeeze(1), state

    def _extend(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Return features ``(B, T, d)`` of further embedded tokens, and the state after them."""
        raise ValueError(f"{type(self).__name__} cannot run token by token")

    @property
    def num_parameters(self) -> int:
        """How many numbers are trained."""
        return sum(parameter.numel() for parameter in self.parameters() if parameter.requires_grad)


def run_packed(recurrent: nn.LSTM | nn.GRU, x: Tensor, mask: Tensor) -> Tensor:
    """Return outputs ``(B, T, d)`` of a batch-first network; its backward direction begins at the last token of each sequence."""
    if bool(mask.all()):
        outputs: Tensor = recurrent(x)[0]
        return outputs
    packed = pack_padded_sequence(x, mask.sum(dim=1).cpu(), batch_first=True, enforce_sorted=False)
    return pad_packed_sequence(recurrent(packed)[0], batch_first=True, total_length=x.shape[1])[0]
