"""Instructions as tokens: the same everywhere, new words welcome, order kept, padding marked."""

import os
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch

from errors import UserError
from world_models.language import T5_XXL, WordEncoder, make_language

BOWL_ON_PLATE = "put the bowl on the plate"
PLATE_ON_BOWL = "put the plate on the bowl"


def similarity(encoder, one, other):
    """Cosine between the tokens of two words, without their places."""
    first, second = (encoder.encode(word)[0, : 3 * encoder.width // 4] for word in (one, other))
    return torch.nn.functional.cosine_similarity(first, second, dim=0).item()


def test_words_are_the_default_and_need_nothing():
    encoder = make_language("words")
    tokens, mask = encoder([BOWL_ON_PLATE, "open the drawer"])
    assert tokens.shape == (2, 7, encoder.width)  # six words and the end
    assert tokens.dtype == torch.float32
    assert mask.sum(1).tolist() == [7, 4]


def test_padding_is_zero_marked_and_changes_nothing_else():
    encoder = WordEncoder()
    alone, all_there = encoder(["open the drawer"])
    tokens, mask = encoder(["open the drawer", BOWL_ON_PLATE])
    assert all_there.all()
    assert mask[0].tolist() == [True] * 4 + [False] * 3
    assert torch.equal(tokens[0, :4], alone[0])
    assert (tokens[0, 4:] == 0).all()


def test_the_same_in_another_process():
    program = (
        "from world_models.language import WordEncoder;"
        f"print(WordEncoder(64)([{BOWL_ON_PLATE!r}])[0].double().flatten().tolist())"
    )
    elsewhere = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"PYTHONHASHSEED": "7", "OMP_NUM_THREADS": "1"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    here = WordEncoder(64)([BOWL_ON_PLATE])[0].double().flatten().tolist()
    assert elsewhere.strip() == str(here)


def test_known_answer():
    """What a checkpoint was trained on: these numbers may not change."""
    token = WordEncoder(32).encode("bowl")[0]
    assert token.shape == (32,)
    expected = torch.tensor([0.648886, 0.0, 1.946657, 0.648886, 0.648886, 0.648886])
    torch.testing.assert_close(token[:6], expected, atol=1e-5, rtol=0)


def test_order_matters_though_the_words_are_the_same():
    encoder = WordEncoder()
    (one, other), _ = encoder([BOWL_ON_PLATE, PLATE_ON_BOWL])
    assert not torch.equal(one, other)
    # Even as a set of tokens, which is all that attention sees.
    nearest = torch.cdist(one, other).min(dim=1).values
    assert (nearest > 1.0).sum() == 2  # bowl and plate stand where they did not
    assert (nearest < 1e-3).sum() == 5


def test_a_new_instruction_shares_tokens_with_a_known_one():
    encoder = WordEncoder()
    known, new = encoder.encode(BOWL_ON_PLATE), encoder.encode("put the kettle on the stove")
    same = (known == new).all(dim=1)
    assert same.tolist() == [True, True, False, True, True, False, True]


def test_words_spelled_alike_are_alike_and_others_are_not():
    encoder = WordEncoder()
    assert similarity(encoder, "bowl", "bowls") > 0.3
    assert similarity(encoder, "drawer", "drawers") > 0.3
    words = ["bowl", "plate", "drawer", "stove", "top", "middle", "left", "wine", "bottle", "cream"]
    for index, word in enumerate(words):
        assert similarity(encoder, word, word) == pytest.approx(1.0)
        for other in words[:index]:
            assert abs(similarity(encoder, word, other)) < 0.35


def test_tokens_of_words_have_one_size():
    tokens = WordEncoder().encode("pick up the alphabet soup and place it in the basket")
    torch.testing.assert_close(tokens.square().mean(1), torch.full((12,), 0.875))


def test_spelling_of_names_and_sentences_agrees():
    encoder = WordEncoder()
    expected = encoder.encode("put the bowl on the plate")
    for instruction in ("Put the bowl on the plate.", "put_the_bowl_on_the_plate"):
        assert torch.equal(encoder.encode(instruction), expected)


@pytest.mark.parametrize("instruction", ["", "...", "設置 café 7"])
def test_any_text_has_at_least_one_token(instruction):
    tokens, mask = WordEncoder()([instruction])
    assert tokens.isfinite().all()
    assert mask.any(dim=1).all()


def test_no_instructions_at_all():
    tokens, mask = WordEncoder(32)([])
    assert tokens.shape == (0, 0, 32)
    assert mask.shape == (0, 0)


def test_width_must_split():
    for width in (0, 16, 100):
        with pytest.raises(UserError, match="multiple of 32"):
            WordEncoder(width)


# ------------------------------------------------------------------------------------------ T5


class Tokenizer:
    """As many tokens as words, and the end."""

    @classmethod
    def from_pretrained(cls, name):
        if name == "nobody/nothing":
            raise OSError("nobody/nothing is not a local folder\nand no model of the hub")
        return cls()

    def __call__(self, text, return_tensors):
        ids = torch.tensor([[len(word) for word in text.split()] + [1]])
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


class Encoder(torch.nn.Module):
    asked = 0
    names = ()

    def __init__(self):
        super().__init__()
        self.embedding = torch.nn.Embedding(32, 6)
        self.config = types.SimpleNamespace(d_model=6)

    @classmethod
    def from_pretrained(cls, name):
        cls.names = (*cls.names, name)
        return cls()

    def forward(self, input_ids, attention_mask):
        type(self).asked += 1
        states = self.embedding(input_ids).to(torch.bfloat16)
        return types.SimpleNamespace(last_hidden_state=states)


@pytest.fixture
def transformers(monkeypatch):
    """A stand-in for the library, whose weights nobody has here."""
    module = types.ModuleType("transformers")
    module.AutoTokenizer, module.T5EncoderModel = Tokenizer, Encoder
    monkeypatch.setitem(sys.modules, "transformers", module)
    monkeypatch.setattr(Encoder, "asked", 0)
    monkeypatch.setattr(Encoder, "names", ())


@pytest.mark.usefixtures("transformers")
def test_t5_is_frozen_padded_and_asked_once_for_each_instruction():
    encoder = make_language("t5:some/folder")
    assert encoder.width == 6
    tokens, mask = encoder([BOWL_ON_PLATE, "open it", BOWL_ON_PLATE])
    assert tokens.shape == (3, 7, 6)
    assert mask.sum(1).tolist() == [7, 3, 7]
    assert tokens.dtype == torch.float32
    assert not tokens.requires_grad
    assert torch.equal(tokens[0], tokens[2])
    encoder(["open it"])
    assert Encoder.asked == 2
    make_language("t5")
    assert Encoder.names == ("some/folder", T5_XXL)


@pytest.mark.usefixtures("transformers")
def test_t5_without_weights_is_one_sentence():
    with pytest.raises(UserError, match="cannot load the T5 encoder nobody/nothing") as caught:
        make_language("t5:nobody/nothing")
    assert "\n" not in str(caught.value)


def test_t5_without_the_library_is_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match="pip install transformers"):
        make_language("t5")


def test_unknown_encoder():
    for name in ("bert", "words:64", ""):
        with pytest.raises(UserError, match="no language encoder"):
            make_language(name)
