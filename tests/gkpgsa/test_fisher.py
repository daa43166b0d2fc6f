"""The Fisher diagonal against a plain loop of one-sample gradients in float64, and against closed forms."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

import ltzoo
from ltzoo.errors import GkpGsaError
from ltzoo.gkpgsa.fisher import FisherKind, _default_chunk_size, diagonal_fisher, estimated_statistics

Setting = tuple[nn.Module, dict[str, Tensor], Tensor, Tensor]
CLASSES = 4


def fisher_of(*args: Any, **options: Any) -> dict[str, Tensor]:
    return diagonal_fisher(*args, **options)[0]


def convnet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 5, 3, bias=False),
        nn.BatchNorm2d(5),
        nn.ReLU(inplace=True),
        nn.Conv2d(5, 4, 2, stride=2),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Flatten(),
        nn.Linear(16, CLASSES),
    )


def mlp() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(108, 7), nn.Tanh(), nn.LayerNorm(7), nn.Linear(7, CLASSES))


def encoder_anchor(model: nn.Module, classifier: str) -> dict[str, Tensor]:
    """Return encoder parameters other than the model's own, as a bank would hold them."""
    return {
        name: value.detach() + 0.1 * torch.randn(value.shape, dtype=value.dtype)
        for name, value in model.named_parameters()
        if not name.startswith(classifier)
    }


@pytest.fixture(params=[convnet, mlp])
def setting(request: pytest.FixtureRequest) -> Iterator[Setting]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = request.param().double()
        for module in model:
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None and module.running_var is not None
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
        inputs = torch.randn(11, 3, 6, 6, dtype=torch.float64)
        labels = torch.randint(CLASSES, (11,))
        yield model.train(), encoder_anchor(model, f'{len(model) - 1}.'), inputs, labels


def literal(
    model: nn.Module, anchor: Mapping[str, Tensor], groups_of_samples: list[tuple[Tensor, Tensor]], prior: Tensor | None
) -> dict[str, Tensor]:
    """Square the gradient of every given group's mean loss, one backward pass each, and average."""
    model = copy.deepcopy(model).eval()
    with torch.no_grad():
        for name, value in anchor.items():
            model.get_parameter(name).copy_(value)
    mean = {name: torch.zeros_like(value) for name, value in anchor.items()}
    for inputs, labels in groups_of_samples:
        model.zero_grad()
        logits = model(inputs)
        F.cross_entropy(logits if prior is None else logits + prior, labels).backward()
        for name, value in mean.items():
            gradient = model.get_parameter(name).grad
            assert gradient is not None
            value += gradient**2 / len(groups_of_samples)
    return mean


def assert_same(one: Mapping[str, Tensor], other: Mapping[str, Tensor], rtol: float = 1e-10) -> None:
    assert list(one) == list(other)
    for name in one:
        scale = other[name].abs().max().item()
        torch.testing.assert_close(one[name], other[name], rtol=rtol, atol=rtol * scale)


@pytest.mark.parametrize('with_prior', [False, True])
def test_empirical_equals_one_backward_pass_a_sample(setting: Setting, with_prior: bool) -> None:
    model, anchor, inputs, labels = setting
    prior = torch.tensor([0.7, 0.2, 0.08, 0.02], dtype=torch.float64).log() if with_prior else None
    singles = [(inputs[i : i + 1], labels[i : i + 1]) for i in range(11)]
    slow = literal(model, anchor, singles, prior)
    assert_same(fisher_of(model, anchor, [(inputs, labels)], chunk_size=4, log_prior=prior), slow)


def test_neither_chunks_nor_batches_matter(setting: Setting) -> None:
    model, anchor, inputs, labels = setting
    whole = fisher_of(model, anchor, [(inputs, labels)], chunk_size=100)
    for chunk_size, batch in [(1, 11), (3, 11), (4, 5), (16, 1)]:
        batches = list(zip(inputs.split(batch), labels.split(batch), strict=True))
        assert_same(fisher_of(model, anchor, iter(batches), chunk_size=chunk_size), whole)
    assert_same(fisher_of(model, anchor, [(inputs, labels)]), whole)


@pytest.mark.parametrize(('parameters', 'chunk_size'), [(2**20, 32), (2**26, 8), (2**29, 1), (2**31, 1)])
def test_the_gradients_of_a_chunk_fit_in_two_gibibytes(parameters: int, chunk_size: int) -> None:
    point = {'weight': torch.empty(parameters // 2, 2, device='meta')}
    assert _default_chunk_size(point) == chunk_size


@pytest.mark.parametrize('kind', ['empirical', 'batch'])
def test_the_loss_is_that_at_the_anchor(setting: Setting, kind: FisherKind) -> None:
    model, anchor, inputs, labels = setting
    prior = torch.randn(CLASSES, dtype=torch.float64)
    batches = [(inputs[:8], labels[:8]), (inputs[8:], labels[8:])]
    _, loss = diagonal_fisher(model, anchor, batches, kind, log_prior=prior, chunk_size=3)
    there = copy.deepcopy(model).eval()
    there.load_state_dict(anchor, strict=False)
    assert loss == pytest.approx(F.cross_entropy(there(inputs) + prior, labels).item(), rel=1e-12)


def test_batch_squares_batch_means(setting: Setting) -> None:
    model, anchor, inputs, labels = setting
    batches = list(zip(inputs.split(4), labels.split(4), strict=True))
    assert [len(y) for _, y in batches] == [4, 4, 3]
    assert_same(fisher_of(model, anchor, batches, 'batch', chunk_size=2), literal(model, anchor, batches, None))


def test_sampled_squares_the_gradient_at_the_labels_it_drew(setting: Setting) -> None:
    model, anchor, inputs, labels = setting
    # A prior that leaves one class possible makes the draw certain, whatever the true labels are.
    prior = torch.full((CLASSES,), -80.0, dtype=torch.float64)
    prior[2] = 0
    weak = torch.tensor([0.0, 0.0, -1.0, 0.0], dtype=torch.float64)
    certain = fisher_of(model, anchor, [(inputs, labels)], 'sampled', log_prior=prior)
    assert_same(certain, fisher_of(model, anchor, [(inputs, labels * 0 + 2)], log_prior=prior))
    draws = [
        fisher_of(
            model,
            anchor,
            [(inputs, labels * 0 + wrong)],
            'sampled',
            chunk_size=chunk_size,
            log_prior=weak,
            generator=torch.Generator().manual_seed(seed),
        )
        for seed, chunk_size, wrong in [(0, 2, 0), (0, 11, 3), (1, 2, 0)]
    ]
    assert_same(draws[0], draws[1])
    name = next(iter(anchor))
    assert not torch.allclose(draws[0][name], draws[2][name], rtol=1e-3)


@pytest.mark.parametrize('with_prior', [False, True])
def test_sampled_is_the_exact_fisher_in_expectation(with_prior: bool) -> None:
    """For softmax regression, entry (c, i) is the mean over samples of p_c (1 - p_c) x_i^2."""
    generator = torch.Generator().manual_seed(0)
    model = nn.Linear(3, 4, dtype=torch.float64)
    point = {
        'weight': torch.randn(4, 3, dtype=torch.float64, generator=generator),
        'bias': torch.randn(4, dtype=torch.float64, generator=generator),
    }
    inputs = torch.randn(5, 3, dtype=torch.float64, generator=generator)
    prior = torch.tensor([0.6, 0.3, 0.08, 0.02], dtype=torch.float64).log() if with_prior else None
    logits = inputs @ point['weight'].T + point['bias']
    p = (logits if prior is None else logits + prior).softmax(1)
    variance = p * (1 - p)
    exact = {'weight': variance.T @ inputs**2 / 5, 'bias': variance.mean(0)}

    enumerated = {name: torch.zeros_like(value) for name, value in point.items()}
    for i in range(5):
        for c in range(4):
            one = fisher_of(model, point, [(inputs[i : i + 1], torch.tensor([c]))], log_prior=prior)
            for name in one:
                enumerated[name] += p[i, c] * one[name] / 5
    assert_same(enumerated, exact)

    repeats = 20_000
    many = [(inputs.repeat(repeats, 1), torch.zeros(5 * repeats, dtype=torch.int64))]
    drawn = fisher_of(
        model, point, many, 'sampled', chunk_size=50_000, log_prior=prior, generator=torch.Generator().manual_seed(1)
    )
    # The squared gradient of a draw is at most x_i^2, so a mean over all draws has at most this standard deviation.
    for name, bound in (('weight', inputs**2), ('bias', torch.ones(5, 1, dtype=torch.float64))):
        deviation = (variance.T @ bound**2 / 5 / (5 * repeats)).sqrt()
        assert ((drawn[name] - exact[name].view_as(drawn[name])).abs() < 5 * deviation.view_as(drawn[name])).all()


def snapshot(model: nn.Module) -> dict[str, Any]:
    return {
        'tensors': {name: value.clone() for name, value in model.state_dict().items()},
        'flags': [module.training for module in model.modules()],
        'requires_grad': [parameter.requires_grad for parameter in model.parameters()],
        'identity': [id(value) for value in [*model.parameters(), *model.buffers()]],
        'gradients': [parameter.grad for parameter in model.parameters()],
        'grad_mode': torch.is_grad_enabled(),
    }


@pytest.mark.parametrize('kind', ['empirical', 'sampled', 'batch'])
def test_the_model_is_left_as_it_was(setting: Setting, kind: FisherKind) -> None:
    model, anchor, inputs, labels = setting
    model.get_submodule('1').eval()
    next(model.parameters()).requires_grad_(False)
    before, anchor_before = snapshot(model), {name: value.clone() for name, value in anchor.items()}

    def broken() -> Iterator[tuple[Tensor, Tensor]]:
        yield inputs, labels
        raise OSError('unreadable image')

    fisher = fisher_of(model, anchor, [(inputs, labels)], kind)
    assert not any(value.requires_grad for value in fisher.values())
    with pytest.raises(OSError, match='unreadable'):
        fisher_of(model, anchor, broken(), kind)
    after = snapshot(model)
    torch.testing.assert_close(after.pop('tensors'), before.pop('tensors'), rtol=0, atol=0)
    assert after == before
    torch.testing.assert_close(anchor, anchor_before, rtol=0, atol=0)


@pytest.mark.parametrize(
    ('name', 'options', 'side', 'classifier'),
    [
        ('resnet32_cifar_ce', {}, 32, 'fc.'),
        ('resnet20_cifar', {'head': 'cosine'}, 16, 'fc.'),
        (
            'timm/vit_tiny_patch16_224',
            {'img_size': 8, 'patch_size': 4, 'embed_dim': 24, 'depth': 2, 'num_heads': 2, 'proj_drop_rate': 0.1},
            8,
            'head.',
        ),
    ],
    ids=['resnet', 'cosine', 'vit'],
)
@pytest.mark.filterwarnings('error')
def test_models_of_the_zoo(name: str, options: dict[str, Any], side: int, classifier: str) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = ltzoo.create_model(name, num_classes=10, **options).double()
        anchor = encoder_anchor(model, classifier)
        inputs, labels = torch.randn(3, 3, side, side, dtype=torch.float64), torch.tensor([3, 0, 9])
    singles = [(inputs[i : i + 1], labels[i : i + 1]) for i in range(3)]
    slow = literal(model, anchor, singles, None)
    assert_same(fisher_of(model, anchor, [(inputs, labels)], chunk_size=2), slow)
    single = fisher_of(model.float(), anchor, [(inputs.float(), labels)])
    assert_same({name: value.double() for name, value in single.items()}, slow, rtol=1e-3)


def test_results_are_float32_in_the_layout_of_the_model() -> None:
    convolution = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    model = nn.Sequential(convolution, nn.Flatten(), nn.Linear(16, 2))
    stored = {'0.weight': convolution.weight.detach().bfloat16().contiguous()}
    inputs, labels = torch.randn(4, 3, 4, 4), torch.tensor([0, 1, 1, 0])
    fisher = fisher_of(model, stored, [(inputs, labels)])
    assert fisher['0.weight'].dtype == torch.float32
    assert fisher['0.weight'].stride() == convolution.weight.stride() != stored['0.weight'].stride()
    rounded = {'0.weight': stored['0.weight'].float()}
    assert_same(fisher, fisher_of(model, rounded, [(inputs, labels)]), rtol=1e-6)


X, Y = torch.zeros(2, 3), torch.tensor([0, 1])


def test_buffers_stand_in_for_the_models_own() -> None:
    torch.manual_seed(0)
    model = convnet().double()
    anchor = encoder_anchor(model, '8.')
    inputs, labels = torch.randn(9, 3, 6, 6, dtype=torch.float64), torch.arange(9) % CLASSES
    statistics = {
        f'{layer}.{name}': torch.rand(width, dtype=torch.float64) + 0.5
        for layer, width in ((1, 5), (4, 4))
        for name in ('running_mean', 'running_var')
    }
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    fisher = fisher_of(model, anchor, [(inputs, labels)], buffers=statistics, chunk_size=4)
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())
    own = fisher_of(model, anchor, [(inputs, labels)])
    for name, value in statistics.items():
        model.get_buffer(name).copy_(value)
    assert_same(fisher, literal(model, anchor, [(x[None], y[None]) for x, y in zip(inputs, labels, strict=True)], None))
    assert not torch.allclose(fisher['0.weight'], own['0.weight'])


def test_statistics_are_estimated_where_the_parameters_are() -> None:
    torch.manual_seed(0)
    model = convnet().double()
    frozen = model[1].eval()
    anchor = encoder_anchor(model, '8.')
    batches = [(3 * torch.randn(n, 3, 6, 6, dtype=torch.float64) + 1, torch.zeros(n)) for n in (9, 8, 1)]
    before = copy.deepcopy(model.state_dict())
    found = estimated_statistics(model, {name: value.float() for name, value in anchor.items()}, batches)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not frozen.training and model[4].training and model[4].momentum == frozen.momentum == 0.1
    there = copy.deepcopy(model).train()
    there.load_state_dict({**before, **anchor})
    # Dropout comes after both layers.
    update_bn((inputs for inputs, _ in batches[:2]), there)
    assert found.keys() == dict(model.named_buffers()).keys()
    assert_same(found, dict(there.named_buffers()), rtol=1e-6)
    assert not torch.allclose(found['1.running_mean'], before['1.running_mean'])
    plain = mlp()
    assert estimated_statistics(plain, dict(plain.named_parameters()), []) == {}
    with pytest.raises(GkpGsaError, match='no batch of two samples or more to take batch-norm statistics of'):
        estimated_statistics(model, anchor, batches[2:])


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'buffers': {'running_mean': torch.zeros(2)}}, 'Linear has no buffer running_mean'),
        ({'kind': 'exact'}, 'kind must be one of empirical, sampled, batch'),
        ({'chunk_size': 0}, 'chunk_size must be at least 1, not 0'),
        ({'parameters': {}}, 'at least one parameter'),
        ({'parameters': {'other': torch.zeros(2, 3)}}, 'Linear has no parameter other'),
        ({'parameters': {'weight': torch.zeros(3)}}, r'weight must have shape \(2, 3\), not \(3,\)'),
        ({'batches': []}, 'no sample'),
        ({'batches': [(X[:0], Y[:0])]}, 'no sample'),
        ({'batches': [(X, Y[:1])]}, r'labels must have shape \(2,\)'),
        ({'batches': [(X, Y + 1)]}, 'between 0 and 1, they go from 1 to 2'),
        ({'batches': [(X, Y - 100)]}, 'between 0 and 1, they go from -100 to -99'),
        ({'log_prior': torch.zeros(3)}, r'log_prior must have shape \(2,\), not \(3,\)'),
        (
            {'model': nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2, track_running_stats=False))},
            '1 keeps no running statistics',
        ),
    ],
)
def test_bad_input_is_named(changes: dict[str, Any], message: str) -> None:
    good: dict[str, Any] = {
        'model': nn.Linear(3, 2),
        'parameters': {'weight': torch.zeros(2, 3)},
        'batches': [(X, Y)],
    }
    with pytest.raises(GkpGsaError, match=message):
        fisher_of(**{**good, **changes})
