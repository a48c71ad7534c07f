"""Networks: shapes, frozen parts, heads, weights that can or cannot be had."""

import pytest
import torch
from torch import nn

from cisskit.errors import KitError
from cisskit.models import ARCHITECTURES, FAMILIES, create, family
from cisskit.models.deeplab import deeplab
from cisskit.models.heads import copy_first, share_background


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_architecture_names_its_features_and_grows(arch):
    model = create(arch, None).eval()
    model.add_head(3)
    model.add_head(2, init=share_background)
    with torch.inference_mode():
        output = model(torch.randn(1, 3, 65, 80))
    stages = {f"layer{k}{end}" for k in range(1, 5) for end in ("", "_sum")}
    expected = {"cnn": {"backbone", "decoder", *stages}, "segmenter": {"backbone", "decoder", "classes"}}[family(arch)]
    assert set(output.features) == expected
    assert output.scores.shape[1] == 5 and output.scores.dtype == torch.float32
    assert output.logits.shape == (1, 5, 65, 80)
    assert output.features["decoder"].shape[1] == model.channels == model.class_rows().shape[1]
    assert len(model.class_rows()) == 5
    if family(arch) == "cnn":
        assert output.features["decoder"].min() >= 0
        weight, bias = model.classifier()
        assert weight.shape == (5, model.channels) and bias.shape == (5,)


@pytest.mark.parametrize("arch", FAMILIES["cnn"])
def test_an_unknown_head_and_taps(arch):
    model = create(arch, None, conv_heads=True, taps=True).eval()
    model.add_head(1, unknown=True)
    model.add_head(1)
    model.add_head(2)
    with torch.no_grad():
        output = model(torch.randn(1, 3, 65, 80))
    assert output.scores.shape[1] == 3 and output.extra["unknown"].shape[1] == 1
    assert output.open_logits.shape == (1, 4, 65, 80)
    torch.testing.assert_close(output.open_logits[:, 1:], output.logits)
    for k in (1, 2, 3):
        assert output.features[f"context{k}"].shape == (1, model.channels, *output.features[f"layer{k}"].shape[2:])
    with torch.inference_mode():  # predictions do not need them
        assert "context1" not in model(torch.randn(1, 3, 65, 80)).features
    assert torch.equal(output.features["layer2"], output.features["layer2_sum"].relu()) or arch.endswith("mobilenet_v2")
    with pytest.raises(TypeError, match="no 1x1 head"):
        model.class_rows()


def test_a_form_that_an_architecture_lacks():
    with pytest.raises(KitError, match=r"toy cannot be built with decoder_blocks; it knows conv_heads, taps"):
        create("toy", None, decoder_blocks=4)


@pytest.mark.parametrize("backbone", ["resnet50", "mobilenet_v2"])
def test_output_stride_is_sixteen(backbone):
    model = deeplab(backbone, None).eval()
    with torch.inference_mode():
        features = model.backbone(torch.randn(1, 3, 64, 96))
    assert [features[f"layer{i}"].shape[2:] for i in (1, 4)] == [torch.Size([16, 24]), torch.Size([4, 6])]


def test_logits_are_formed_once_and_only_whenread_state():
    model = create("toy")
    model.add_head(2)
    output = model(torch.randn(1, 3, 32, 32))
    assert "logits" not in vars(output)
    assert output.logits is output.logits


def test_frozen_parts_stay_frozen_in_training_mode():
    model = create("deeplabv3_mobilenet_v2", None)
    model.add_head(2)
    model.freeze("bn", "dropout")
    model.train()
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms and not any(m.training or m.weight.requires_grad for m in norms)
    assert not any(m.training for m in model.modules() if isinstance(m, nn.Dropout))
    assert model.backbone.training and next(model.backbone.parameters()).requires_grad
    before = norms[0].running_mean.clone()
    model(torch.randn(2, 3, 64, 64))
    assert torch.equal(before, norms[0].running_mean)
    model.freeze("backbone")
    model.train()
    assert not any(p.requires_grad for p in model.backbone.parameters())
    with pytest.raises(KitError, match=r"unknown part of a model 'back'\. Did you mean 'backbone'"):
        model.freeze("back")


def test_a_detached_head_does_not_shape_the_features():
    model = create("toy")
    model.add_head(1, detached=True)
    model.add_head(2)
    scores = model(torch.randn(2, 3, 32, 32)).scores
    scores[:, 0].sum().backward(retain_graph=True)
    assert model.heads[0].weight.grad.any()
    assert not any(p.grad.any() for p in model.decoder.parameters())
    scores[:, 1].sum().backward()
    assert all(p.grad.any() for p in model.decoder.parameters() if p.ndim == 4)


def test_mib_birth_leaves_the_background_as_likely_as_it_was():
    model = create("toy").eval()
    model.add_head(4)
    x = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        before = model(x).scores.softmax(1)
        model.add_head(2, init=share_background)
        after = model(x).scores.softmax(1)
    assert torch.allclose(after[:, [0, 4, 5]].sum(1), before[:, 0], atol=1e-6)
    assert torch.allclose(after[:, 0], after[:, 4]) and torch.allclose(after[:, 1:4], before[:, 1:], atol=1e-6)


def test_dkd_birth_copies_the_auxiliary_head():
    model = create("toy")
    model.add_head(1)
    model.add_head(3)
    new = model.add_head(2, init=copy_first)
    assert torch.equal(new.weight, model.heads[0].weight.expand_as(new.weight)) and torch.equal(
        new.bias, model.heads[0].bias.expand(2)
    )


def test_unknown_networks_say_what_there_is():
    with pytest.raises(KitError, match="Did you mean 'deeplabv3_resnet50'"):
        create("deeplabv3_resnet5")
    with pytest.raises(KitError, match="unknown backbone 'vgg'"):
        deeplab("vgg")


def test_weights_from_a_file(tmp_path):
    from torchvision.models import mobilenet_v2

    torch.manual_seed(3)
    file = tmp_path / "w.pth"
    net = mobilenet_v2()
    torch.save({k: v.half() if v.dtype == torch.float32 else v for k, v in net.state_dict().items()}, file)
    model = deeplab("mobilenet_v2", str(file))
    assert torch.allclose(model.backbone.layer1[0][0].weight, net.features[0][0].weight, atol=1e-3)
    with pytest.raises(KitError, match="not the weights of torchvision's resnet50"):
        deeplab("resnet50", str(file))
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(KitError, match="cannot be read as a state dict"):
        deeplab("mobilenet_v2", str(file))
    with pytest.raises(KitError, match="no weights at"):
        deeplab("mobilenet_v2", str(tmp_path / "missing.pth"))


def test_weights_that_would_run_code_are_refused(tmp_path):
    class Bomb:
        def __reduce__(self):
            return print, ("boom",)

    file = tmp_path / "w.pth"
    torch.save({"x": Bomb()}, file)
    with pytest.raises(KitError, match="cannot be read as a state dict"):
        deeplab("mobilenet_v2", str(file))


def test_no_network_says_which_file_to_fetch(monkeypatch):
    def unreachable(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", unreachable)
    with pytest.raises(KitError, match=r"fetch resnet101-.*\.pth \(torchvision's ResNet101_Weights.IMAGENET1K_V1\).*checkpoints"):
        deeplab("resnet101")


def test_real_imagenet_weights_fit(shared):
    file = shared / "data/real/mobilenet_v2_imagenet.pth"
    if not file.exists():
        pytest.skip("the real MobileNetV2 weights are not in the shared folder")
    model = deeplab("mobilenet_v2", str(file))
    assert model.backbone.layer1[0][0].weight.dtype == torch.float32
