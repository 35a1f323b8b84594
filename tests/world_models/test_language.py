"""Instructions as tokens: the same everywhere, new words welcome, order kept, padding marked."""

import inspect
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from errors import UserError
from world_models.imports import hide_broken_torchvision
from world_models.language import T5, T5_XXL, WordEncoder, make_language

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


@pytest.fixture(scope="module")
def tiny_t5(tmp_path_factory):
    """A T5 encoder of the real library, small and with random weights, saved in a folder."""
    hide_broken_torchvision()
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

    folder = tmp_path_factory.mktemp("t5")
    words = ["<pad>", "</s>", "<unk>", *sorted({*BOWL_ON_PLATE.split(), "open"})]
    tokenizer = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"d_model": 6, "d_kv": 3, "d_ff": 12, "num_layers": 1, "num_heads": 2}
    T5EncoderModel(T5Config(vocab_size=16, **sizes)).save_pretrained(folder)
    return folder


def test_t5_is_frozen_padded_and_asked_once_for_each_instruction(tiny_t5):
    encoder = make_language(f"t5:{tiny_t5}")
    assert encoder.width == 6
    tokens, mask = encoder([BOWL_ON_PLATE, "open it", PLATE_ON_BOWL])
    assert tokens.shape == (3, 7, 6)
    assert mask.sum(1).tolist() == [7, 3, 7]
    assert tokens.dtype == torch.float32
    assert not tokens.requires_grad
    assert not torch.allclose(tokens[0], tokens[2])
    encoder._model = None  # nothing is left to ask
    again, _ = encoder(["open it"])
    assert torch.equal(again[0], tokens[1, :3])


def test_the_papers_t5_is_the_default():
    assert inspect.signature(T5).parameters["model"].default == T5_XXL == "google/t5-v1_1-xxl"


def test_t5_without_weights_is_one_sentence(tiny_t5, tmp_path):
    with pytest.raises(UserError, match=f"cannot load the T5 encoder {tmp_path}") as caught:
        make_language(f"t5:{tmp_path}")
    assert "\n" not in str(caught.value)


class Command:
    """A pickle that runs a command when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def with_code(folder, executed):
    """Files may name code of their own, for transformers to import."""
    code = f"open({str(executed)!r}, 'w')\nclass Evil: pass\n"
    (folder / "payload.py").write_text(code)
    own = {"AutoConfig": "payload.Evil", "AutoTokenizer": ["payload.Evil", "payload.Evil"]}
    for name in ("config.json", "tokenizer_config.json"):
        given = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(given | {"auto_map": own, "tokenizer_class": "Evil"}))


def with_pickle(folder, executed):
    (folder / "model.safetensors").unlink()
    torch.save({"shared.weight": Command(executed)}, folder / "pytorch_model.bin")


def without_weights_of_a_layer(folder, executed):
    file = folder / "model.safetensors"
    kept = {name: part for name, part in load_file(file).items() if "layer_norm" not in name}
    save_file(kept, file, {"format": "pt"})


DAMAGES = {
    "code": (with_code, None),
    "pickle": (with_pickle, "Weights only load failed"),
    "weights": (without_weights_of_a_layer, "lacks 3 of its weights, encoder.block.0"),
    "no tokenizer": (lambda f, _: (f / "tokenizer.json").unlink(), "there is no tokenizer.json"),
    "tokenizer": (lambda f, _: (f / "tokenizer.json").write_text("{}"), "cannot load"),
    "list": (lambda f, _: (f / "config.json").write_text("[]"), "cannot load"),
    "sizes": (lambda f, _: (f / "config.json").write_text('{"d_model": -5}'), "cannot load"),
}


@pytest.mark.parametrize(("damage", "words"), DAMAGES.values(), ids=DAMAGES)
def test_a_folder_of_somebody_runs_nothing_and_what_is_wrong_in_it_is_one_line(
    tiny_t5, tmp_path, damage, words
):
    shutil.copytree(tiny_t5, tmp_path / "t5")
    damage(tmp_path / "t5", tmp_path / "executed")
    if words is None:
        assert make_language(f"t5:{tmp_path / 't5'}").width == 6
    else:
        with pytest.raises(UserError, match=words) as caught:
            make_language(f"t5:{tmp_path / 't5'}")
        assert "\n" not in str(caught.value)
        assert str(tmp_path) in str(caught.value)
    assert not (tmp_path / "executed").exists()


def test_t5_without_the_library_is_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match=r"pip install '\.\[t5\]'"):
        make_language("t5")


def test_unknown_encoder():
    for name in ("bert", "words:64", ""):
        with pytest.raises(UserError, match="no language encoder"):
            make_language(name)


def test_a_torchvision_that_cannot_be_imported_does_no_harm(tiny_t5, tmp_path):
    (tmp_path / "torchvision.py").write_text("raise RuntimeError('made for another PyTorch')\n")
    program = (
        f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(Path(__file__).parents[2])!r}]\n"
        f"from world_models.language import make_language; make_language({f't5:{tiny_t5}'!r})\n"
        "import world_models.mask_dynamics\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
