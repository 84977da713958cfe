"""The check of a written head: each fault that it is there for is planted and caught."""

import json
import shutil

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from support.families import build

import graftkit
from graftkit.verification.heads.check import HeadPromise, check_head

PRIOR = (0.2, 0.5, 0.3)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    place, made = tmp_path_factory.mktemp("heads"), {}

    def result(family, task="sequence_classification", **fields):
        key = (family, task, json.dumps(fields))
        if key not in made:
            source, output = build(family, place / f"{len(made)}-source"), place / f"{len(made)}-out"
            labels = {"labels": ["a", "b", "c"]} if "classification" in task else {}
            operation = {"op": "replace_head", "task": task, **labels, **fields}
            report = graftkit.apply(
                {"version": 1, "base_model": str(source), "operations": [operation], "output": str(output)}
            )
            made[key] = source, output, report.checks[0]
        return made[key]

    return result


def with_config(directory, target, **changes):
    shutil.copytree(directory, target)
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**config, **changes}))
    return target


def with_tensor(directory, target, name, change):
    shutil.copytree(directory, target)
    tensors = load_file(target / "model.safetensors")
    tensors[name] = change(tensors[name])
    kept = {key: value for key, value in tensors.items() if value is not None}
    save_file(kept, target / "model.safetensors", {"format": "pt"})
    return target


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_both_paddings_agree_and_a_wrong_pad_id_is_caught(family, written, tmp_path):
    source, output, report = written(family)
    promise = HeadPromise(("score.weight",), ("right", "left"))
    assert [side.side for side in report.paddings] == ["right", "left"]
    assert all(side.difference <= side.threshold < 1e-9 for side in report.paddings)
    wrong = with_config(output, tmp_path / "wrong", pad_token_id=77)
    failures = check_head(source, wrong, promise).failures
    assert any("other logits in a batch with right padding" in failure for failure in failures)
    absent = with_config(output, tmp_path / "absent", pad_token_id=None)
    assert any("batch sizes > 1" in failure for failure in check_head(source, absent, promise).failures)


@pytest.mark.parametrize(
    ("family", "task"),
    [("bert_base", "multiple_choice"), ("bert", "question_answering"), ("bart", "sequence_classification"), ("t5", "token_classification")],
)  # fmt: skip
def test_a_batch_padded_on_the_right_agrees_for_every_kind_of_head(family, task, written):
    _, _, report = written(family, task)
    assert [side.side for side in report.paddings] == ["right"]
    assert report.paddings[0].difference <= report.paddings[0].threshold
    assert not report.skipped


def test_an_encoder_that_forgets_the_mask_is_told_apart_from_a_head_that_fails():
    """FNet mixes over all positions and takes no mask: the backbone itself changes with padding, the head is not at fault."""
    from graftkit.verification.heads.padding import compare_paddings

    config = transformers.FNetConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=1, intermediate_size=32, num_labels=3,
        use_tpu_fourier_optimizations=False, max_position_embeddings=64, tpu_short_seq_length=64,
    )  # fmt: skip
    model = transformers.FNetForSequenceClassification(config).eval()
    texts = [list(range(5, 5 + n)) for n in (5, 9, 14, 20)]
    (side,) = compare_paddings(model, texts, 0, ["right"], ["classifier.weight"], choices=False)
    assert side.backbone > 1e-3
    assert not side.failed


TEXTS = [list(range(5, 5 + n)) for n in (5, 9, 14, 20)]


def test_a_class_that_reads_one_position_behind_the_end_is_told_from_a_wrong_pad_id():
    """T5Gemma shifts its decoder by one and stops at the end of the batch, so the longest text is read otherwise."""
    from graftkit.verification.heads.padding import compare_paddings

    part = {
        "vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 1, "intermediate_size": 32, "num_attention_heads": 2,
        "num_key_value_heads": 1, "head_dim": 16,
    }  # fmt: skip
    config = transformers.T5GemmaConfig(encoder=part, decoder=part, vocab_size=64, num_labels=3, pad_token_id=0)
    config.decoder.bos_token_id = 2
    model = transformers.T5GemmaForSequenceClassification(config).eval()
    (side,) = compare_paddings(model, TEXTS, 0, ["right"], ["score.out_proj.weight"], choices=False)
    assert (side.beyond, side.failed) == (True, False)
    assert side.difference > 1e-3
    model.config.pad_token_id = 63
    (side,) = compare_paddings(model, TEXTS, 0, ["right"], ["score.out_proj.weight"], choices=False)
    assert (side.beyond, side.failed) == (False, True)


def test_a_head_that_reads_the_last_position_is_sound_on_the_left_alone():
    from graftkit.verification.heads.padding import compare_paddings

    config = transformers.XLNetConfig(vocab_size=64, d_model=32, n_layer=1, n_head=2, d_inner=32, num_labels=3)
    model = transformers.XLNetForSequenceClassification(config).eval()
    right, left = compare_paddings(model, TEXTS, 5, ["right", "left"], ["logits_proj.weight"], choices=False)
    assert (right.failed, left.failed) == (True, False)
    assert left.difference <= left.threshold


def test_a_missing_head_tensor_and_a_random_one_are_caught(written, tmp_path):
    source, output, _ = written("bert_base")
    broken = with_tensor(output, tmp_path / "broken", "classifier.weight", lambda _: None)
    failures = check_head(source, broken, HeadPromise(("classifier.weight",), ("right",))).failures
    assert any("missing tensors: classifier.weight" in failure for failure in failures)
    assert any("two loads" in failure for failure in failures)


def test_another_bias_than_the_prior_s_is_caught(written, tmp_path):
    source, output, report = written("bert_base", init={"scheme": "zeros", "class_prior": list(PRIOR)})
    assert report.first_loss == pytest.approx(report.entropy, abs=1e-6)
    broken = with_tensor(output, tmp_path / "broken", "classifier.bias", lambda bias: bias.flip(0) * 1.01)
    promise = HeadPromise(("classifier.weight",), ("right",), prior=PRIOR)
    assert any("the first loss is" in failure for failure in check_head(source, broken, promise).failures)


def test_many_labels_have_the_entropy_of_each(written):
    fields = {"problem_type": "multi_label_classification", "init": {"scheme": "zeros", "class_prior": 0.01}}
    _, _, report = written("roberta", **fields)
    assert report.first_loss == pytest.approx(0.0560, abs=1e-4)
    assert report.first_loss == pytest.approx(report.entropy, abs=1e-5)


def vision(directory):
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, image_size=32, patch_size=16
    )
    transformers.ViTModel(config).save_pretrained(directory)
    return directory


def sound(directory):
    torch.manual_seed(0)
    config = transformers.Wav2Vec2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, conv_dim=(32, 32),
        conv_stride=(5, 4), conv_kernel=(10, 4), num_feat_extract_layers=2, num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4, classifier_proj_size=16,
    )  # fmt: skip
    transformers.Wav2Vec2Model(config).save_pretrained(directory)
    return directory


@pytest.mark.parametrize(
    ("make", "task", "endings"),
    [
        (vision, "image_classification", ("fc1.weight", "intermediate.dense.weight")),
        (sound, "audio_classification", ("output_dense.weight",)),
    ],
)
def test_images_and_sound(make, task, endings, tmp_path):
    source, output = make(tmp_path / "source"), tmp_path / "out"
    init = {"scheme": "zeros", "class_prior": list(PRIOR)}
    operation = {"op": "replace_head", "task": task, "labels": ["a", "b", "c"], "init": init}
    report = graftkit.apply(
        {"version": 1, "base_model": str(source), "operations": [operation], "output": str(output)}
    ).checks[0]
    assert report.backbone.equal >= 3
    assert report.first_loss == pytest.approx(report.entropy, abs=1e-5)
    names = load_file(output / "model.safetensors").keys()
    weight = next(name for name in sorted(names) if ".1." in name and name.endswith(endings))
    broken = with_tensor(output, tmp_path / "broken", weight, lambda value: value + 0.5)
    failures = check_head(source, broken, HeadPromise(("classifier.weight",), ())).failures
    assert any("hidden states of the backbone differ" in failure for failure in failures)
