"""A text stored in one tensor, each word under the keys of its sentence and its position, and read back sentence by sentence.

    python scripts/examples/tensor_memory.py

A nested read takes the key of a sentence first, which gives a memory of that sentence, and then the keys of the positions. With
orthogonal keys nothing is lost until all keys are used. There are more random unit keys, but they overlap: the more sentences a
memory of fixed size holds, the more words are read wrong, with erase (p_e = 1, the older ones first) and without.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor

from fewshot_nam.memory.primitives import unit
from fewshot_nam.memory.tensor import TensorMemory

TEXT = """a memory is written with a key
the same key reads the value again
two keys name a sentence and a word
one read leaves the words of one sentence
the next read leaves one word""".splitlines()
PLACES = 8  # no sentence is longer


def nearest(found: Tensor, words: Tensor) -> list[int]:
    """Return for each row of ``found`` ``(t, D)`` which of ``words`` ``(V, D)`` it is most like."""
    return (found @ words.mT).argmax(dim=-1).tolist()


def read_back(size: int, generator: torch.Generator) -> None:
    """Store the text under orthogonal keys, print it, forget one sentence and print what is left of it."""
    vocabulary = sorted({word for line in TEXT for word in line.split()})
    words = unit(torch.randn(len(vocabulary), size, generator=generator))
    sentences = torch.linalg.qr(torch.randn(size, size, generator=generator)).Q
    places = torch.linalg.qr(torch.randn(PLACES, PLACES, generator=generator)).Q
    memory = TensorMemory(size, key_sizes=(size, PLACES))
    for sentence, line in zip(sentences, TEXT, strict=False):
        values = words[[vocabulary.index(word) for word in line.split()]]
        memory.write_sequence((sentence.expand(len(values), size), places[: len(values)]), values)
    memory.erase(sentences[2])
    print(f"{memory}: {memory.memory.numel():,} numbers; sentence 3 erased")
    for sentence in sentences[: len(TEXT)]:
        found = memory.read(sentence).read(places)  # a memory of words, then its words
        held = found.norm(dim=-1) > 0.5  # nothing was written elsewhere
        print("  " + (" ".join(vocabulary[i] for i in nearest(found[held], words)) or "(nothing)"))


def recall(count: int, size: int, p_erase: float, generator: torch.Generator) -> float:
    """Return the share of words read back right, of ``count`` sentences of random words under random unit keys."""
    vocabulary, sentences, places = (
        unit(torch.randn(n, d, generator=generator)) for n, d in ((1000, size), (count, size), (PLACES, PLACES * 4))
    )
    said = torch.randint(len(vocabulary), (count, PLACES), generator=generator)
    memory = TensorMemory(size, key_sizes=(size, PLACES * 4))
    keys = (sentences.repeat_interleave(PLACES, dim=0), places.repeat(count, 1))
    memory.write_sequence(keys, vocabulary[said.flatten()], p_erase=p_erase)
    found = torch.tensor(nearest(memory.read(*keys), vocabulary))
    return (found == said.flatten()).float().mean().item()


def main() -> None:
    """Print the text as it comes back, and how recall falls."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=32, help="of values and of the sentences' keys")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    generator = torch.Generator().manual_seed(options.seed)
    read_back(options.size, generator)
    print(f"\nwords right, of sentences of {PLACES} words under random unit keys: p_e = 0, p_e = 1")
    for count in (4, 8, 16, 32, 64, 128):
        shares = [100 * recall(count, options.size, p_erase, generator) for p_erase in (0.0, 1.0)]
        print(f"{count:4} sentences {shares[0]:6.1f} % {shares[1]:6.1f} %")


if __name__ == "__main__":
    main()
