"""A causal language model of NAM-Transformer layers, which generates at a constant cost per token.

Tokens are embedded, pass pre-norm layers of causal NAM attention (``transformer``), and are scored by the transposed embedding or
by an output layer. There are no positions: the model knows the order of tokens from the erase, the short convolution and the causal
memory. The state for generation is one memory for each head and layer, for any number of tokens.

Source: Nam and Seo, "Neural Attention Memory" (arXiv 2302.09422), section on the NAM-Transformer; the arrangement is that of GPT-2
(Radford et al., 2019).

Legend: ``B`` sequences, ``T`` tokens, ``V`` size of the vocabulary, ``E`` width of a token.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn

from fewshot_nam.memory.attention import AttentionState, Decay
from fewshot_nam.memory.transformer import NAMTransformerEncoder, NAMTransformerEncoderLayer

LanguageModelState = tuple[AttentionState, ...]
"""The state of a language model after some tokens: one for each layer."""


class NAMLanguageModel(nn.Module):
    """Next-token scores ``(B, T, V)`` for tokens ``(B, T)``, and generation.

    Args:
        vocabulary: ``V``, the number of different tokens.
        embed_dim: ``E``, width of a token, a multiple of ``num_heads``.
        num_heads: heads of each layer.
        num_layers: number of layers.
        dim_feedforward: width of the hidden layers; default ``4 E``.
        dropout: probability of dropping features, as in ``NAMTransformerEncoderLayer``, and of the embeddings.
        erase: write tokens in order with a learned erase probability, see ``NAMAttention``.
        gates: learn read and write probabilities.
        conv_size: width of the short convolution of queries, keys and values; None for none.
        max_erase: the largest erase gate, up to 2.
        decay: ``"head"`` or ``"token"``: how the memory fades, see ``NAMAttention``.
        output_norm: normalise the reads of each head.
        tie_weights: score tokens by the transposed embedding.
        backend: how sequences are scanned, see ``memory_scan``.
        device: where the parameters are.
        dtype: dtype of the parameters.

    Raises:
        ValueError: sizes or options that do not fit.

    Example:
        >>> model = NAMLanguageModel(vocabulary=50, embed_dim=16, num_heads=2, num_layers=2).eval()
        >>> prompt = torch.tensor([[3, 1, 4, 1, 5]])
        >>> model(prompt).shape
        torch.Size([1, 5, 50])
        >>> model.generate(prompt, steps=3).shape  # greedy
        torch.Size([1, 3])
    """

    def __init__(
        self,
        vocabulary: int,
        embed_dim: int,
        num_heads: int,
        num_layers: int,
        dim_feedforward: int | None = None,
        dropout: float = 0.0,
        *,
        erase: bool = True,
        gates: bool = False,
        conv_size: int | None = 4,
        max_erase: float = 1.0,
        decay: Decay = None,
        output_norm: bool = True,
        tie_weights: bool = True,
        backend: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        for name, size in {"vocabulary": vocabulary, "num_layers": num_layers}.items():
            if size < 1:
                raise ValueError(f"NAMLanguageModel: {name} must be at least 1, got {size}")
        self.vocabulary = vocabulary
        self.embedding = nn.Embedding(vocabulary, embed_dim, device=device, dtype=dtype)
        nn.init.normal_(self.embedding.weight, std=embed_dim**-0.5)
        self.dropout = nn.Dropout(dropout)
        layers = [
            NAMTransformerEncoderLayer(
                embed_dim,
                num_heads,
                4 * embed_dim if dim_feedforward is None else dim_feedforward,
                dropout,
                activation="gelu",
                batch_first=True,
                norm_first=True,
                device=device,
                dtype=dtype,
                erase=erase,
                gates=gates,
                conv_size=conv_size,
                max_erase=max_erase,
                decay=decay,
                output_norm=output_norm,
                backend=backend,
            )
            for _ in range(num_layers)
        ]
        norm = nn.LayerNorm(embed_dim, device=device, dtype=dtype)
        self.encoder = NAMTransformerEncoder(layers[0], num_layers, norm)
        self.encoder.layers = nn.ModuleList(layers)  # instead of copies of the first, so that they start differently
        self.output = nn.Linear(embed_dim, vocabulary, bias=False, device=device, dtype=dtype)
        if tie_weights:
            self.output.weight = self.embedding.weight

    def forward(self, tokens: Tensor, padding: Tensor | None = None) -> Tensor:
        """Return the scores (logits) ``(B, T, V)`` of the token after each token.

        Args:
            tokens: ``(B, T)`` integers from 0 to ``V - 1``.
            padding: ``(B, T)`` bool, True where there is no token; None: tokens everywhere. The scores there mean nothing.

        Raises:
            TypeError: tokens that are not integers, or another kind of mask.
            ValueError: another shape.
            IndexError: a token that is not below ``V``.
        """
        x = self.dropout(self.embedding(_check_tokens("NAMLanguageModel", tokens, 2)))
        return self.output(self.encoder(x, src_key_padding_mask=padding, is_causal=True))

    def init_state(self, batch_size: int) -> LanguageModelState:
        """Return the state of ``batch_size`` sequences before their first token."""
        return self.encoder.init_state(batch_size)

    def extend(
        self, tokens: Tensor, state: LanguageModelState, padding: Tensor | None = None
    ) -> tuple[Tensor, LanguageModelState]:
        """Return the scores ``(B, T, V)`` after each of further tokens ``(B, T)``, and the state after them."""
        x = self.dropout(self.embedding(_check_tokens("NAMLanguageModel.extend", tokens, 2)))
        x, state = self.encoder.extend(x, state, padding)
        return self.output(x), state

    def step(self, tokens: Tensor, state: LanguageModelState) -> tuple[Tensor, LanguageModelState]:
        """Return the scores ``(B, V)`` after one further token ``(B,)`` of every sequence, and the state after it."""
        x = self.dropout(self.embedding(_check_tokens("NAMLanguageModel.step", tokens, 1)))
        x, state = self.encoder.step(x, state)
        return self.output(x), state

    @torch.no_grad()
    def generate(
        self,
        prompt: Tensor,
        steps: int,
        *,
        temperature: float = 0.0,
        top_k: int | None = None,
        end: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Return ``steps`` further tokens ``(B, steps)`` for each prompt, at a cost that is linear in ``T + steps``.

        Call ``eval()`` first: dropout is as the module's mode says.

        Args:
            prompt: ``(B, T)`` integers, at least one token.
            steps: number of tokens, at least 0.
            temperature: 0 for the most probable token; above 0 tokens are drawn from ``softmax(scores / temperature)``.
            top_k: draw only from the ``top_k`` most probable tokens. Default: from all.
            end: the token after which a sequence is filled with ``end``. Default: none.
            generator: of the random numbers.

        Raises:
            TypeError: a prompt that is not an integer tensor.
            ValueError: an empty prompt, or a number out of its range.
        """
        return generate(
            self,
            prompt,
            steps,
            temperature=temperature,
            top_k=top_k,
            end=end,
            generator=generator,
            where="NAMLanguageModel.generate",
        )


class Streaming(Protocol):
    """A model that runs token by token: see ``NAMLanguageModel`` for the three methods."""

    def init_state(self, batch_size: int) -> Any:
        """Return the state before the first token."""

    def extend(self, tokens: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Return the scores after further tokens ``(B, T)``, and the state after them."""

    def step(self, tokens: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Return the scores after one further token ``(B,)``, and the state after it."""


@torch.no_grad()
def generate(
    model: Streaming,
    prompt: Tensor,
    steps: int,
    *,
    temperature: float = 0.0,
    top_k: int | None = None,
    end: int | None = None,
    generator: torch.Generator | None = None,
    where: str = "generate",
) -> Tensor:
    """Return what any streaming model says after a prompt; see ``NAMLanguageModel.generate``. ``where`` begins error messages."""
    _check_tokens(where, prompt, 2)
    if not prompt.shape[1] or steps < 0:
        raise ValueError(
            f"{where}: needs a prompt of at least one token and at least 0 steps, got {prompt.shape[1]} and {steps}"
        )
    if not temperature >= 0 or (top_k is not None and top_k < 1):
        raise ValueError(f"{where}: temperature must be at least 0 and top_k at least 1, got {temperature} and {top_k}")
    scores, state = model.extend(prompt, model.init_state(prompt.shape[0]))
    scores, tokens = scores[:, -1], []
    ended = torch.zeros(prompt.shape[0], dtype=torch.bool, device=prompt.device)
    for number in range(steps):
        token = _choose(scores, temperature, top_k, generator).to(prompt.dtype)
        if end is not None:
            token = token.masked_fill(ended, end)
            ended = ended | (token == end)
        tokens.append(token)
        if number + 1 < steps:
            scores, state = model.step(token, state)
    return torch.stack(tokens, dim=1) if tokens else prompt[:, :0]


_LEAST_TEMPERATURE = 1e-30  # in float32 smaller ones are 0


def _choose(scores: Tensor, temperature: float, top_k: int | None, generator: torch.Generator | None) -> Tensor:
    """Return a token ``(B,)`` for scores ``(B, V)``."""
    if not temperature:
        return scores.argmax(dim=-1)
    # The largest becomes 0, so that a small temperature makes the others -inf and none of them infinite.
    scores = (scores - scores.amax(dim=-1, keepdim=True)).float() / max(temperature, _LEAST_TEMPERATURE)
    if top_k is not None and top_k < scores.shape[-1]:
        least = scores.topk(top_k, dim=-1).values[:, -1:]
        scores = scores.masked_fill(scores < least, -torch.inf)
    return torch.multinomial(scores.softmax(dim=-1), 1, generator=generator).squeeze(1)


def _check_tokens(where: str, tokens: Tensor, dimensions: int) -> Tensor:
    if not isinstance(tokens, Tensor) or tokens.dtype not in (torch.int64, torch.int32):
        kind = tokens.dtype if isinstance(tokens, Tensor) else type(tokens).__name__
        raise TypeError(f"{where}: tokens must be an integer tensor (int64 or int32), got {kind}")
    if tokens.dim() != dimensions:
        wanted = "(B, T)" if dimensions == 2 else "(B,)"
        raise ValueError(f"{where}: tokens must have shape {wanted}, got {tuple(tokens.shape)}")
    return tokens
