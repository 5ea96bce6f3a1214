"""FID's network against its layers in torch, on random weights, and its tensors against torchvision's list of them."""

import hashlib
import json
import re

import numpy as np
import pytest
from flax import nnx
from PIL import Image

from anygpt_jax.errors import UserError
from anygpt_jax.evaluation import protocols
from anygpt_jax.evaluation.judges import inception
from anygpt_jax.evaluation.judges.chosen import Judges
from anygpt_jax.evaluation.judges.inception import FILE, Inception, prepare
from anygpt_jax.evaluation.judges.inception_network import InceptionNetwork, layout
from anygpt_jax.evaluation.measures.distributions import frechet_distance
from anygpt_jax.modalities.codecs import weights

torch = pytest.importorskip("torch")
F = torch.nn.functional

# Of the sorted lines "name [shape]" of torchvision 0.29's inception_v3(num_classes=1008, aux_logits=False), which has
# 23,850,960 parameters in 566 tensors.
PUBLISHED = "8cdd2faeb41211e17f0fb47e66168d0cb1f981aa773b5f44e5b9cc93857fe492"


class Layers:
    """The published network by torch's functions: of a state dict, or making a random one as it is run."""

    def __init__(self, state=None):
        self.random = state is None
        self.state = {} if state is None else state
        self.generator = torch.Generator().manual_seed(0)

    def parameters(self, name, inputs, outputs, kernel):
        """Random scales and statistics too, so that none can be forgotten; magnitudes that stay alike in depth."""
        weight = torch.randn((outputs, inputs, *kernel), generator=self.generator)
        self.state[f"{name}.conv.weight"] = weight * (2 / weight[0].numel()) ** 0.5
        for part, low in (("weight", 0.5), ("running_var", 0.5), ("bias", -0.3), ("running_mean", -0.3)):
            spread = 1.0 if low > 0 else 0.6
            self.state[f"{name}.bn.{part}"] = low + spread * torch.rand(outputs, generator=self.generator)
        self.state[f"{name}.bn.num_batches_tracked"] = torch.tensor(0)

    def conv(self, x, name, outputs, kernel=(1, 1), padding=(0, 0), stride=1):
        if self.random:
            self.parameters(name, x.shape[1], outputs, kernel)
            return x.new_zeros(x.shape[0], outputs, *x.shape[2:])
        norm = [self.state[f"{name}.bn.{part}"] for part in ("running_mean", "running_var", "weight", "bias")]
        x = F.conv2d(x, self.state[f"{name}.conv.weight"], stride=stride, padding=padding)
        return F.relu(F.batch_norm(x, *norm, eps=1e-3))

    def average(self, x):
        return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)

    def halved(self, x):
        return x if self.random else F.max_pool2d(x, 3, 2)

    def a(self, x, n, pooled):
        five = self.conv(self.conv(x, f"{n}.branch5x5_1", 48), f"{n}.branch5x5_2", 64, (5, 5), 2)
        three = self.conv(self.conv(x, f"{n}.branch3x3dbl_1", 64), f"{n}.branch3x3dbl_2", 96, (3, 3), 1)
        three = self.conv(three, f"{n}.branch3x3dbl_3", 96, (3, 3), 1)
        pool = self.conv(self.average(x), f"{n}.branch_pool", pooled)
        return torch.cat([self.conv(x, f"{n}.branch1x1", 64), five, three, pool], 1)

    def b(self, x, n):
        three = self.conv(self.conv(x, f"{n}.branch3x3dbl_1", 64), f"{n}.branch3x3dbl_2", 96, (3, 3), 1)
        three = self.conv(three, f"{n}.branch3x3dbl_3", 96, (3, 3), stride=2)
        return torch.cat([self.conv(x, f"{n}.branch3x3", 384, (3, 3), stride=2), three, self.halved(x)], 1)

    def c(self, x, n, width):
        wide, high = {"kernel": (1, 7), "padding": (0, 3)}, {"kernel": (7, 1), "padding": (3, 0)}
        seven = self.conv(self.conv(x, f"{n}.branch7x7_1", width), f"{n}.branch7x7_2", width, **wide)
        seven = self.conv(seven, f"{n}.branch7x7_3", 192, **high)
        double = self.conv(self.conv(x, f"{n}.branch7x7dbl_1", width), f"{n}.branch7x7dbl_2", width, **high)
        double = self.conv(double, f"{n}.branch7x7dbl_3", width, **wide)
        double = self.conv(double, f"{n}.branch7x7dbl_4", width, **high)
        double = self.conv(double, f"{n}.branch7x7dbl_5", 192, **wide)
        pool = self.conv(self.average(x), f"{n}.branch_pool", 192)
        return torch.cat([self.conv(x, f"{n}.branch1x1", 192), seven, double, pool], 1)

    def d(self, x, n):
        three = self.conv(self.conv(x, f"{n}.branch3x3_1", 192), f"{n}.branch3x3_2", 320, (3, 3), stride=2)
        seven = self.conv(self.conv(x, f"{n}.branch7x7x3_1", 192), f"{n}.branch7x7x3_2", 192, (1, 7), (0, 3))
        seven = self.conv(seven, f"{n}.branch7x7x3_3", 192, (7, 1), (3, 0))
        seven = self.conv(seven, f"{n}.branch7x7x3_4", 192, (3, 3), stride=2)
        return torch.cat([three, seven, self.halved(x)], 1)

    def e(self, x, n, pool):
        three = self.conv(x, f"{n}.branch3x3_1", 384)
        double = self.conv(self.conv(x, f"{n}.branch3x3dbl_1", 448), f"{n}.branch3x3dbl_2", 384, (3, 3), 1)
        parts = [self.conv(x, f"{n}.branch1x1", 320)]
        for y, name in ((three, "branch3x3_2"), (double, "branch3x3dbl_3")):
            parts.append(self.conv(y, f"{n}.{name}a", 384, (1, 3), (0, 1)))
            parts.append(self.conv(y, f"{n}.{name}b", 384, (3, 1), (1, 0)))
        return torch.cat([*parts, self.conv(pool(x), f"{n}.branch_pool", 192)], 1)

    def __call__(self, x):
        x = self.conv(x, "Conv2d_1a_3x3", 32, (3, 3), stride=2)
        x = self.conv(x, "Conv2d_2a_3x3", 32, (3, 3))
        x = self.halved(self.conv(x, "Conv2d_2b_3x3", 64, (3, 3), 1))
        x = self.conv(self.conv(x, "Conv2d_3b_1x1", 80), "Conv2d_4a_3x3", 192, (3, 3))
        x = self.halved(x)
        for letter, pooled in zip("bcd", (32, 64, 64), strict=True):
            x = self.a(x, f"Mixed_5{letter}", pooled)
        x = self.b(x, "Mixed_6a")
        for letter, width in zip("bcde", (128, 160, 160, 192), strict=True):
            x = self.c(x, f"Mixed_6{letter}", width)
        x = self.d(x, "Mixed_7a")
        x = self.e(x, "Mixed_7b", self.average)
        x = self.e(x, "Mixed_7c", lambda x: F.max_pool2d(x, 3, 1, 1))
        return x.mean((2, 3))


@pytest.fixture(scope="module")
def state():
    torch.set_num_threads(1)  # threads that wait for work would take it from JAX's
    layers = Layers()
    layers(torch.zeros(1, 3, 1, 1))
    return layers.state | {"fc.weight": torch.zeros(1008, 2048), "fc.bias": torch.zeros(1008)}


@pytest.fixture(scope="module")
def folder(state, tmp_path_factory):
    path = tmp_path_factory.mktemp("judges") / "inception"
    path.mkdir()
    torch.save(state, path / FILE)
    return path


@pytest.fixture(scope="module")
def judge(folder):
    """With small batches: a processor takes half a second for a picture."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inception, "BATCH", 2)
        yield Inception.load(folder)


def pictures(*sizes, seed=0):
    """Noise at several scales, so that resizing and the network's pools matter."""
    rng = np.random.default_rng(seed)
    return [
        np.asarray(Image.fromarray(rng.integers(0, 256, (9, 7, 3), np.uint8)).resize(size[::-1])) // 2
        + rng.integers(0, 128, (*size, 3), np.uint8)
        for size in sizes
    ]


def resized(picture):
    x = torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 255
    return 2 * F.interpolate(x, size=(299, 299), mode="bilinear", align_corners=False) - 1


def test_the_features_are_those_of_the_published_layers(judge, state):
    given = pictures((64, 48), (400, 310), (299, 299))
    found = judge.images(iter(given))  # a batch and a half
    with torch.no_grad():
        expected = Layers(state)(torch.cat([resized(picture) for picture in given])).numpy()
    assert found.shape == (3, 2048) and found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())
    assert np.abs(expected[0] - expected[1]).max() > 1e-2 * np.abs(expected).max()
    assert judge.images([]).shape == (0, 2048)


@pytest.mark.parametrize("size", [(1, 1), (64, 48), (299, 299), (640, 427), (298, 1000)])
def test_pictures_are_resized_as_torch_does(size):
    (picture,) = pictures(size)
    np.testing.assert_allclose(prepare(picture), resized(picture)[0].permute(1, 2, 0).numpy(), atol=1e-4)


def test_every_published_tensor_has_its_place(state):
    listed = sorted(f"{name} {list(x.shape)}" for name, x in state.items())
    assert len(listed) == 566 and hashlib.sha256("\n".join(listed).encode()).hexdigest() == PUBLISHED
    learnt = sum(x.numel() for name, x in state.items() if re.search(r"\.(weight|bias)$", name))
    assert learnt == 23_850_960
    network = nnx.eval_shape(lambda: InceptionNetwork(rngs=weights.rngs()))
    expected = {weights.dotted(k): v.shape for k, v in nnx.to_flat_state(nnx.state(network))}
    assert layout().keys() == expected.keys()
    used = {name for rule in layout().values() for name in rule.choose(state).names}
    left = {name for name in state.keys() - used if not name.endswith("num_batches_tracked")}
    assert left == {"fc.weight", "fc.bias"}


def test_other_files_are_refused_in_one_sentence(state, tmp_path):
    with pytest.raises(UserError, match=rf"There is no .*{re.escape(FILE)}; .*pytorch-fid\.$"):
        Inception.load(tmp_path)
    lost, extra = "Mixed_7c.branch_pool.bn.running_var", "AuxLogits.fc.weight"
    changed = {name: x for name, x in state.items() if name != lost} | {extra: torch.zeros(2)}
    torch.save(changed, tmp_path / FILE)
    with pytest.raises(UserError, match=rf"lacks 1 of .*{re.escape(lost)}.* holds 1 unknown .*{re.escape(extra)}"):
        Inception.load(tmp_path)


def test_what_is_no_picture_is_refused(judge):
    with pytest.raises(ValueError, match="uint8"):
        judge.images([np.zeros((8, 8, 3), np.float32)])


def test_fid_is_measured_where_its_weights_are(judge, folder, tmp_path):
    """By `coco_image`, beside CLIP's measures and between all pictures and their own originals."""
    assert Judges().inception is None and Judges(tmp_path).inception is None

    class Blind:
        def images(self, pictures):
            return np.ones((len(pictures), 2))

        texts = images

    judges = Judges(tmp_path)
    judges.__dict__.update(clip=Blind(), inception=None)
    protocol = protocols.by_name("coco_image")
    assert [m.name for m in protocol.all_measures(judges)] == ["clip_i", "clip_t"]
    judges.__dict__["inception"] = judge
    fid = protocol.all_measures(judges)[-1]
    assert fid.name == "fid" and not fid.higher_is_better and not fid.resampled
    originals, made = pictures((60, 60), (50, 70), seed=1), pictures((80, 60), (60, 60), seed=2)
    references = []
    for i, picture in enumerate(originals):
        Image.fromarray(picture).save(tmp_path / f"{i}.png")
        references.append({"file": str(tmp_path / f"{i}.png"), "captions": [json.dumps(i)]})
    rows = fid.rows(references, made)
    expected = frechet_distance(judge.images(made), judge.images(originals))
    assert fid.score(rows) == pytest.approx(expected, rel=1e-6) and expected > 0
    assert fid.score(fid.rows(references, originals)) == pytest.approx(0, abs=1e-6 * expected)
    assert fid.score(fid.rows(references, [made[0], None])) == np.inf
