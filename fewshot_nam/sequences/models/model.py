"""What every sequence model is: tokens in, logits over the same vocabulary out, padding ignored.

Legend: ``B`` sequences, ``T`` tokens, ``d`` features, ``V`` words of the vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from fewshot_nam.sequences.tasks.task import SequenceTask


class SequenceModel(nn.Module):
    """An embedding, a body that a subclass gives as ``_encode``, and a linear classifier over the vocabulary.

    Args:
        task: whose vocabulary and padding it has.
        embedding_dim: width of the embedding.
        width: ``d``, width of what ``_encode`` returns.
    """

    def __init__(self, task: SequenceTask, embedding_dim: int, width: int) -> None:
        super().__init__()
        self.pad = task.pad
        self.embed = nn.Embedding(len(task.vocabulary), embedding_dim)
        self.classify = nn.Linear(width, len(task.vocabulary))

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits ``(B, T, V)`` for ``tokens`` ``(B, T)`` long; what stands behind a sequence changes nothing before it.

        Raises:
            ValueError: tokens of another shape or kind.
        """
        if tokens.dim() != 2 or tokens.dtype != torch.long:
            raise ValueError(
                f"{type(self).__name__}: tokens must be (B, T) long, got {tuple(tokens.shape)} {tokens.dtype}"
            )
        logits: Tensor = self.classify(self._encode(self.embed(tokens), tokens != self.pad))
        return logits

    def _encode(self, x: Tensor, mask: Tensor) -> Tensor:
        """Return features ``(B, T, d)`` of embedded tokens ``(B, T, E)``; ``mask`` ``(B, T)`` is False on padding."""
        raise NotImplementedError

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
