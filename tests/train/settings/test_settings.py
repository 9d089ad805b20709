import dataclasses

import pytest

from repq_tf.branches import MODES
from repq_tf.models import list_models
from repq_tf.post_training.rounding import ROUNDINGS
from repq_tf.quantizers import RANGES
from repq_tf.train.errors import UserError
from repq_tf.train.settings import checks, flags, resolve
from repq_tf.train.settings.recipes import find_recipe


def test_defaults_come_from_the_recipe():
    settings = resolve()
    recipe = find_recipe("ac_resnet18", "digits")
    assert (settings.model, settings.method, settings.bn_statistics) == (
        "ac_resnet18",
        "repq",
        "restored",
    )
    assert settings.weight_bits == settings.activation_bits == 8
    assert settings.epochs == recipe.epochs
    assert settings.batch_size == recipe.batch_size
    assert settings.workdir == "runs/ac_resnet18-repq-8bit-digits"
    assert None not in (settings.learning_rate, settings.qat_learning_rate, settings.augment)


def test_flags_name_the_rules_that_there_are():
    """Their lists are written twice, since flags are read before the library is imported."""
    assert set(flags.RANGES) == set(RANGES) and set(flags.ROUNDINGS) == set(ROUNDINGS)
    assert set(flags.BN_STATISTICS) == set(MODES)
    chosen = resolve(method="ptq")
    assert (chosen.qat_epochs, chosen.rounding, chosen.ranges) == (0, "nearest", None)
    assert resolve().ranges == "min_error"


def test_given_values_win_over_the_recipe():
    settings = resolve(epochs=0.5, qat_epochs=0, batch_size=7, augment="none", weight_decay=0.0)
    assert (settings.epochs, settings.qat_epochs, settings.batch_size) == (0.5, 0, 7)
    assert (settings.augment, settings.weight_decay) == ("none", 0.0)


def test_imagenet_recipes_are_the_papers():
    repvgg = resolve(model="repvgg_a0", dataset="imagenet2012")
    assert (repvgg.epochs, repvgg.batch_size, repvgg.learning_rate) == (120, 256, 0.1)
    assert (repvgg.weight_decay, repvgg.decay, repvgg.warmup_epochs) == (1e-4, "kernels", 0)
    acnet = resolve(model="ac_resnet18", dataset="imagenet2012:5.1.0")
    assert (acnet.epochs, acnet.decay, acnet.augment) == (100, "all", "resized_crop")
    orepa = resolve(model="orepa_resnet18", dataset="imagenet2012")
    assert (orepa.epochs, orepa.weight_decay, orepa.decay) == (120, 1e-4, "gains")
    assert resolve(model="qarepvgg_a0", dataset="imagenet2012").weight_decay == 4e-5
    repopt = resolve(model="repopt_vgg_b1", dataset="imagenet2012")
    assert (repopt.weight_decay, repopt.warmup_epochs) == (4e-5, 5)


@pytest.mark.parametrize(
    "name", ["mnist", "mnist_corrupted/shear", "omniglot", "cmaterdb", "binary_alpha_digits"]
)
def test_characters_are_not_mirrored(name):
    assert resolve(dataset=name).augment == "crop"


def test_run_folder_names_tell_the_runs_apart():
    names = {
        resolve(**given).workdir
        for given in (
            {},
            {"bits": 4},
            {"weight_bits": 4},
            {"activation_bits": 4},
            {"bits": 4, "container": "int4"},
            {"input_type": "uint8"},
            {"method": "plain"},
            {"dataset": "folder:/some/where/cats"},
            {"dataset": "cifar10"},
        )
    }
    assert len(names) == 9
    assert "runs/ac_resnet18-repq-w4a8bit-digits" in names
    assert "runs/ac_resnet18-repq-8bit-cats" in names


@pytest.mark.parametrize(
    "given, words",
    [
        ({"model": "resnet19"}, ["--model", "resnet19", "ac_resnet18", "repvgg_a0"]),
        ({"method": "rep"}, ["--method", "'rep'", "plain, merged, repq"]),
        ({"bn_statistics": "exact"}, ["--bn_statistics", "exact", "restored", "running"]),
        ({"bits": 1}, ["--bits", "from 2 to 8", "Received: 1"]),
        ({"bits": 9}, ["--bits", "from 2 to 8", "Received: 9"]),
        ({"weight_bits": 0}, ["--weight_bits", "from 2 to 8"]),
        ({"activation_bits": 12}, ["--activation_bits", "from 2 to 8, or 16"]),
        ({"weight_bits": 16}, ["--weight_bits", "from 2 to 8. "]),
        ({"activation_bits": 16, "quantizer": "tfmot"}, ["--activation_bits=16", "tfmot"]),
        ({"bits": 4, "container": "int2"}, ["--container", "int8, int4"]),
        ({"activation_bits": 16, "input_type": "uint8"}, ["--input_type", "int16, float32"]),
        ({"input_type": "int16"}, ["--input_type", "int8, uint8, float32", "'int16'"]),
        ({"input_type": "uint8", "c_array": True}, ["--c_array", "--input_type=uint8"]),
        ({"container": "int4"}, ["--container=int4", "at most 4 bits", "8 bits"]),
        ({"bits": 4, "weight_bits": 4}, ["--bits", "--weight_bits=4"]),
        ({"method": "plain", "bn_statistics": "batch"}, ["--bn_statistics", "--method=repq"]),
        ({"rounding": "descent"}, ["--rounding", "--method=ptq", "repq"]),
        ({"method": "ptq", "rounding": "random"}, ["--rounding", "random", "adaround"]),
        ({"method": "ptq", "qat_epochs": 1}, ["--qat_epochs", "--method=ptq"]),
        ({"method": "ptq", "finetune_epochs": 1}, ["--finetune_epochs", "--method=ptq"]),
        ({"method": "ptq", "quantizer": "tfmot"}, ["--method=ptq", "tfmot"]),
        ({"equalize": True, "quantizer": "tfmot"}, ["--equalize", "tfmot"]),
        ({"weight_levels": "cluster", "quantizer": "tfmot"}, ["=cluster", "tfmot"]),
        ({"wide_tap": True, "container": "int4", "bits": 4}, ["--wide_tap", "int4"]),
        ({"wide_tap": True, "method": "ptq"}, ["--wide_tap", "--method=ptq"]),
        ({"distill": "/no/such"}, ["--distill", "/no/such"]),
        ({"distill": "float", "method": "ptq"}, ["--distill", "--method=ptq"]),
        ({"anneal_identities": True}, ["--anneal_identities", "--finetune_epochs=0"]),
        (
            {"anneal_identities": True, "finetune_epochs": 1, "method": "merged"},
            ["--anneal_identities", "--method=merged"],
        ),
        ({"distill_temperature": 2.0}, ["--distill_temperature", "--distill", "2.0"]),
        ({"weight_levels": "cluster", "wide_tap": True}, ["=cluster", "--wide_tap", "True"]),
        ({"weight_levels": "cluster", "container": "int4", "bits": 4}, ["=cluster", "int4"]),
        ({"upgrade": "/no/such.keras"}, ["--upgrade", "/no/such.keras"]),
        ({"upgrade": "x.keras", "model": "resnet18"}, ["--upgrade", "--model=resnet18"]),
        ({"upgrade": "x.keras", "method": "plain"}, ["--upgrade", "--method=plain"]),
        ({"dampening": 0.1, "method": "ptq"}, ["--dampening", "--method=ptq"]),
        ({"ranges": "widest"}, ["--ranges", "widest", "percentile"]),
        ({"merged_bn": False}, ["--merged_bn", "--method=merged"]),
        ({"epochs": 0}, ["--epochs", "greater than 0"]),
        ({"epochs": float("nan")}, ["--epochs", "nan"]),
        ({"qat_epochs": -1}, ["--qat_epochs", "at least 0"]),
        ({"learning_rate": -0.1}, ["--learning_rate", "-0.1"]),
        ({"qat_learning_rate": float("inf")}, ["--qat_learning_rate", "inf"]),
        ({"weight_decay": -1.0}, ["--weight_decay"]),
        ({"batch_size": 0}, ["--batch_size", "at least 1"]),
        ({"calibration_images": 0}, ["--calibration_images"]),
        ({"width": 0.0}, ["--width"]),
        ({"image_size": 0}, ["--image_size"]),
        ({"seed": -1}, ["--seed"]),
        ({"seed": 2**32}, ["--seed"]),
        ({"augment": "flip"}, ["--augment", "crop_flip"]),
        ({"dataset": ""}, ["--dataset"]),
        ({"strategy": "tpu"}, ["--strategy", "mirrored"]),
        ({"mixed_precision": "float64"}, ["--mixed_precision", "bfloat16"]),
        ({"init_from": "/no/such/run"}, ["--init_from", "/no/such/run"]),
        ({"init_from": "/", "epochs": 3}, ["--init_from", "--epochs"]),
    ],
)
def test_bad_values_are_refused_by_name(given, words):
    with pytest.raises(UserError) as error:
        resolve(**given)
    for word in words:
        assert word in str(error.value)


def test_an_unknown_model_gets_the_whole_list():
    with pytest.raises(UserError) as error:
        resolve(model="resnet19")
    for name in list_models("classification"):
        assert name in str(error.value)


def test_the_task_follows_the_model():
    assert resolve().task == resolve(model="repvgg_a0").task == "classification"
    found = resolve(model="ecbsr_m4c16", scale=3)
    assert (found.task, found.dataset, found.scale) == ("super_resolution", "photographs", 3)
    assert (found.color, found.test_sets) == ("y", None)
    assert found.workdir == "runs/ecbsr_m4c16-x3-repq-8bit-photographs"
    assert resolve(task="super_resolution") == resolve(model="ecbsr_m4c8")


def test_super_resolution_is_trained_as_its_authors_do_on_their_data():
    found = resolve(model="ecbsr_m4c8", dataset="div2k")
    assert (found.optimizer, found.schedule, found.learning_rate) == ("adam", "constant", 5e-4)
    assert (found.epochs, found.batch_size, found.weight_decay) == (1000, 32, 0)
    assert 800 * found.crops_per_image // found.batch_size == 1600  # steps in an epoch
    assert found.patch_size * found.scale == 128


def test_test_sets_keep_their_order_and_get_whole_paths():
    found = resolve(model="ecbsr_m4c8", test_sets="b:/x/y,a:/z")
    assert found.test_sets == "b:/x/y,a:/z"
    assert checks.split_test_sets(found.test_sets) == {"b": "/x/y", "a": "/z"}
    assert resolve(model="ecbsr_m4c8", test_sets="a:z").test_sets.startswith("a:/")


@pytest.mark.parametrize(
    "given, words",
    [
        ({"task": "detection"}, ["--task", "classification, super_resolution", "detection"]),
        (
            {"task": "classification", "model": "ecbsr_m4c8"},
            ["--model=ecbsr_m4c8", "super_resolution", "--task=classification", "ac_resnet18"],
        ),
        ({"task": "super_resolution", "model": "resnet18"}, ["--model=resnet18", "ecbsr_m4c8"]),
        ({"task": "super_resolution", "model": "ecbsr_m4c9"}, ["ecbsr_m4c8", "Did you mean"]),
        ({"scale": 2}, ["--scale is of --task=super_resolution", "classification", "2"]),
        ({"test_sets": "a:/b"}, ["--test_sets is of --task=super_resolution"]),
        ({"model": "ecbsr_m4c8", "width": 0.5}, ["--width is of --task=classification", "0.5"]),
        ({"model": "ecbsr_m4c8", "mixup": 0.2}, ["--mixup is of --task=classification"]),
        ({"model": "ecbsr_m4c8", "augment": "crop"}, ["--augment"]),
        ({"model": "ecbsr_m4c8", "scale": 1}, ["--scale", "at least 2", "1"]),
        ({"model": "ecbsr_m4c8", "color": "yuv"}, ["--color", "y, rgb", "yuv"]),
        ({"model": "ecbsr_m4c8", "patch_size": 0}, ["--patch_size", "at least 1"]),
        ({"model": "ecbsr_m4c8", "crops_per_image": 0}, ["--crops_per_image"]),
        ({"model": "ecbsr_m4c8", "test_sets": "/b"}, ["NAME:PATH", "'/b'"]),
        ({"model": "ecbsr_m4c8", "test_sets": "a:/b,a:/c"}, ["different names", "'a:/c'"]),
        ({"model": "ecbsr_m4c8", "bn_statistics": "batch"}, ["--bn_statistics", "none"]),
        ({"model": "repvgg_sr_m4c16", "bn_statistics": "batch"}, ["--bn_statistics", "none"]),
        ({"model": "ecbsr_m4c8", "sync_bn": True}, ["--sync_bn=True", "ecbsr_m4c8 has none"]),
        (
            {"model": "ecbsr_m4c8", "c_array": True},
            ["--c_array", "--task=super_resolution", "any size", "input_shape=(h, w, c)"],
        ),
        (
            {"model": "ecbsr_m4c8", "quantizer": "tfmot"},
            ["--quantizer=tfmot", "classification"],
        ),
    ],
)
def test_bad_values_of_tasks_are_refused_by_name(given, words):
    with pytest.raises(UserError) as error:
        resolve(**given)
    for word in words:
        assert word in str(error.value)


def test_differences_name_what_decides_the_result():
    settings = resolve()
    assert not settings.differences(settings.as_dict())
    moved = dataclasses.replace(settings, workdir="/else", data_dir="/there", verbose=0)
    assert not settings.differences(moved.as_dict())
    other = dataclasses.replace(settings, seed=5, weight_bits=4)
    assert settings.differences(other.as_dict()) == [("weight_bits", 8, 4), ("seed", 0, 5)]
