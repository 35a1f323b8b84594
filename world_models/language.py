"""Language encoders: instructions as sequences of tokens, which the world model attends to.

The encoders are frozen: what an instruction means for a task is learned by the caption projection
behind them. They are no modules, so that nothing of them gets into a checkpoint.

Shape legend: B instructions, L tokens of the longest, C width of a token.
"""

from __future__ import annotations

import hashlib
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from errors import UserError
from world_models.imports import first_line, hide_broken_torchvision, refuse_missing

T5_XXL = "google/t5-v1_1-xxl"
"""The text encoder that LTX-Video was trained with: 4,096 wide, 4.8 billion parameters."""

TOKENIZERS = ("tokenizer.json", "spiece.model", "tokenizer.model")
"""Files of which one holds a tokenizer's vocabulary; without, transformers makes an empty one."""


class LanguageEncoder(ABC):
    """Base class: encodes each instruction once, and pads a batch of them.

    Attributes:
        width: C.
    """

    width: int

    def __init__(self) -> None:
        self._encoded: dict[str, Tensor] = {}

    @abstractmethod
    def encode(self, instruction: str) -> Tensor:
        """The tokens of one instruction, (L, C) float32, L at least 1."""

    def __call__(self, instructions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Tokens and mask of several instructions, padded with zeros to the longest, on the CPU.

        Returns:
            (B, L, C) float32, and (B, L) bool, true where there is a token.
        """
        for instruction in instructions:
            if instruction not in self._encoded:  # a run asks a million times for a handful
                self._encoded[instruction] = self.encode(instruction)
        encoded = [self._encoded[instruction] for instruction in instructions]
        longest = max((len(tokens) for tokens in encoded), default=0)
        padded = torch.zeros(len(encoded), longest, self.width)
        mask = torch.zeros(len(encoded), longest, dtype=torch.bool)
        for row, tokens in enumerate(encoded):
            padded[row, : len(tokens)] = tokens
            mask[row, : len(tokens)] = True
        return padded, mask


class WordEncoder(LanguageEncoder):
    """Random vectors of words, by hashing: one token a word, and one for the end.

    Nothing is learned and nothing downloaded.

    Three quarters of a token say which word it is: the sum of random ±1 vectors, one of the word
    itself and one of every three letters in a row, each drawn from a hash of what it stands for. So
    a new instruction shares tokens with those that have words in common with it, and "bowls" is
    like "bowl". The last quarter says where it stands, in sines and cosines. The same on every
    machine.

    Args:
        width: C, a multiple of 32.
    """

    wavelengths = (4.0, 400.0)
    """Shortest and longest wavelength of the positions, words."""

    def __init__(self, width: int = 256):
        super().__init__()
        if width < 32 or width % 32:
            raise UserError(f"the width of words must be a multiple of 32, not {width}")
        self.width = width

    def encode(self, instruction: str) -> Tensor:
        words = re.findall(r"[^\W_]+", instruction.casefold())
        vectors = [self._word(word) for word in words]
        vectors.append(self._row("end"))
        return torch.cat([torch.stack(vectors), self._positions(len(vectors))], dim=1)

    def _word(self, word: str) -> Tensor:
        """(3·C/4,), of unit mean square; half of it is the word's own, half its letters'."""
        spelled = f"<{word}>"
        letters = [self._row(f"letters {spelled[i : i + 3]}") for i in range(len(word))]
        vector = self._row(f"word {word}") + torch.stack(letters).sum(0) / math.sqrt(len(letters))
        return vector / vector.square().mean().sqrt()

    def _row(self, feature: str) -> Tensor:
        """The row of a random projection that belongs to a feature: (3·C/4,) of ±1."""
        digest = hashlib.shake_256(feature.encode()).digest(3 * self.width // 4 // 8)
        bits = np.unpackbits(np.frombuffer(digest, dtype=np.uint8))
        return torch.from_numpy(bits).float() * 2.0 - 1.0

    def _positions(self, count: int) -> Tensor:
        """(count, C/4): sines and cosines of wavelengths in a geometric series."""
        shortest, longest = self.wavelengths
        exponents = torch.linspace(0.0, 1.0, self.width // 8, dtype=torch.float64)
        frequencies = 2.0 * math.pi / (shortest * (longest / shortest) ** exponents)
        angles = torch.arange(count, dtype=torch.float64)[:, None] * frequencies
        return torch.cat([angles.sin(), angles.cos()], dim=1).float()


class T5(LanguageEncoder):
    """A pretrained T5 encoder, as the paper uses it, on the CPU.

    Args:
        model: a name on the Hugging Face hub, or a folder with model and tokenizer.

    Raises:
        UserError: the library or the weights are not there.
    """

    def __init__(self, model: str = T5_XXL):
        super().__init__()
        hide_broken_torchvision()
        try:
            from transformers import AutoTokenizer, T5EncoderModel
        # A library that is there and broken, or meets a broken one, raises what it likes.
        except (ImportError, RuntimeError) as error:
            reason = first_line(error)
            raise UserError(
                f"language t5 needs the library transformers (pip install '.[t5]'): {reason}"
            ) from error
        folder = Path(model)
        if folder.is_dir() and not any((folder / name).exists() for name in TOKENIZERS):
            raise UserError(f"cannot load the T5 encoder {model}: there is no {TOKENIZERS[0]}")
        loaded: Any
        try:
            # A folder may bring code of its own, and pickles: neither is run.
            self._tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=False)
            loaded = T5EncoderModel.from_pretrained(
                model, trust_remote_code=False, weights_only=True, output_loading_info=True
            )
        except Exception as error:  # whatever the library makes of the files
            reason = first_line(error)
            raise UserError(f"cannot load the T5 encoder {model}: {reason}") from error
        encoder, found = loaded
        refuse_missing(f"the T5 encoder {model}", found)
        self._model = encoder.eval().requires_grad_(False)
        self.width = self._model.config.d_model

    @torch.no_grad()
    def encode(self, instruction: str) -> Tensor:
        tokens = self._tokenizer(instruction, return_tensors="pt")
        states = self._model(
            input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]
        ).last_hidden_state
        return states[0].float()


def weights_named(name: str) -> tuple[str, ...]:
    """What `make_language` would load from a folder or the network: `name`, if it is a T5."""
    return (name,) if name.partition(":")[0] == "t5" else ()


def make_language(name: str) -> LanguageEncoder:
    """The encoder called `name`: `words`, `t5`, or `t5:` and a folder or hub name.

    Raises:
        UserError: no such encoder, or it cannot be loaded.
    """
    kind, _, model = name.partition(":")
    if name == "words":
        return WordEncoder()
    if kind == "t5":
        return T5(model) if model else T5()
    raise UserError(f"no language encoder {name!r}; there are words, t5 and t5:FOLDER_OR_NAME")
