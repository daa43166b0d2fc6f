"""The diagonal of a classifier's Fisher information: how much every parameter matters to a group of classes.

Source: the F_j of Eq. 5 and 6 of Reframing Long-Tailed Learning via Loss Landscape Geometry (arXiv 2603.21217), after
Kirkpatrick et al., Overcoming Catastrophic Forgetting in Neural Networks (PNAS 2017). That the two kinds of labels give
different matrices: Kunstner et al., Limitations of the Empirical Fisher Approximation for Natural Gradient
Descent (NeurIPS 2019), Eq. 2 and 3. Batch-norm's statistics at a mean of weights are taken anew as in Izmailov et al.,
Averaging Weights Leads to Wider Optima and Better Generalization (UAI 2018).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm

from ltzoo.errors import GkpGsaError
from ltzoo.models.mode import evaluating, full_precision

__all__ = ['FisherKind', 'diagonal_fisher', 'estimated_statistics']

FisherKind = Literal['empirical', 'sampled', 'batch']


@torch.no_grad()
def diagonal_fisher(
    model: nn.Module,
    parameters: Mapping[str, Tensor],
    batches: Iterable[tuple[Tensor, Tensor]],
    kind: FisherKind = 'empirical',
    *,
    buffers: Mapping[str, Tensor] | None = None,
    chunk_size: int | None = None,
    log_prior: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> tuple[dict[str, Tensor], float]:
    """Return the mean over samples of the squared gradient of log p(y | x): F_j / |G_j| of Eq. 6 for a group's samples.

    The gradient is taken at `parameters`, usually a group's anchor, which stand in for the model's own; what is not
    among them or `buffers`, the classifier usually, stays as the model has it now. It is computed in evaluation mode:
    batch-norm uses its running statistics, so a sample's gradient does not depend on its neighbours. The model is left
    as it was.

    Args:
        model: maps inputs (N, ...) to logits (N, C).
        parameters: by their names in the model, in any precision and on any device.
        batches: (inputs, labels) on the model's device, labels int64 of shape (N,).
        kind: whose labels. 'empirical' takes the true ones; 'sampled' draws one for each sample from the model's
            softmax, which is the true Fisher in expectation; 'batch' squares the gradient of every batch's mean loss,
            as the authors' code does, and averages over batches: a batch's gradients cancel before they are squared,
            so it is 1e3 to 1.5e4 times too small and depends on the batch size. They divide by the number of samples,
            which makes theirs smaller again by the batch size.
        buffers: by their names in the model, such as the running statistics that belong to `parameters`.
        chunk_size: samples whose gradients are in memory at once, each as large as `parameters`; by default 256 on a
            GPU, which starts every kernel anew for a chunk, and 32 on a CPU, and less where 2 GiB would not hold them.
            'batch' takes whole batches.
        log_prior: added to the logits where the training loss does so (BCL, balanced softmax), shape (C,).
        generator: of the labels drawn; by default the global one.

    Returns:
        The diagonal, with names and shapes of `parameters`, with the strides and on the device of the model's own, in
        float32 or the model's wider type; and the mean loss, -log p(y | x), at `parameters`.

    Raises:
        GkpGsaError: if a parameter or buffer is unknown or of another shape, there is no sample, inputs, labels or the
            prior do not fit together, a batch-norm keeps no running statistics, or a setting is not one of those above.
    """
    if kind not in get_args(FisherKind):
        raise GkpGsaError(f'kind must be one of {", ".join(get_args(FisherKind))}, not {kind!r}')
    if chunk_size is not None and chunk_size < 1:
        raise GkpGsaError(f'chunk_size must be at least 1, not {chunk_size}')
    point = _at(model, parameters)
    fixed = _in_place_of(model, dict(model.named_buffers()), buffers or {}, 'buffer')
    chunk_size = chunk_size or _default_chunk_size(point)
    total = {
        name: torch.zeros_like(value, dtype=torch.promote_types(value.dtype, torch.float32))
        for name, value in point.items()
    }

    def logits(at: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
        outputs = functional_call(model, {**at, **fixed}, (inputs,))
        outputs = outputs.to(torch.promote_types(outputs.dtype, torch.float32))
        return outputs if log_prior is None else outputs + log_prior

    def mean_log_likelihood(at: Mapping[str, Tensor], inputs: Tensor, labels: Tensor) -> Tensor:
        return logits(at, inputs).log_softmax(-1).gather(-1, labels[:, None]).mean()

    of_units = vmap(grad_and_value(mean_log_likelihood), in_dims=(None, 0, 0))
    log_likelihood = next(iter(total.values())).new_zeros(())
    classes = terms = samples = 0
    # Fused attention cannot be batched over samples: torch would loop, and warn.
    with evaluating(model), full_precision(), sdpa_kernel(SDPBackend.MATH):
        for inputs, labels in batches:
            if labels.shape != inputs.shape[:1]:
                raise GkpGsaError(
                    f'labels must have shape ({len(inputs)},), one for each input, not {tuple(labels.shape)}'
                )
            if len(labels) == 0:
                continue
            if not classes:
                classes = functional_call(model, point, (inputs[:1],)).shape[-1]
                if log_prior is not None and log_prior.shape != (classes,):
                    raise GkpGsaError(f'log_prior must have shape ({classes},), not {tuple(log_prior.shape)}')
            if not 0 <= labels.min() <= labels.max() < classes:
                raise GkpGsaError(
                    f'labels must lie between 0 and {classes - 1}, they go from {labels.min()} to {labels.max()}'
                )
            if kind == 'sampled':
                chunks = [logits(point, chunk) for chunk in inputs.split(chunk_size)]
                labels = _draw(torch.cat(chunks).softmax(-1), generator)
            # A term of the mean is the squared gradient of a unit: of one sample, or of a whole batch.
            units = (inputs[None], labels[None]) if kind == 'batch' else (inputs[:, None], labels[:, None])
            for of_chunk in zip(*(unit.split(chunk_size) for unit in units), strict=True):
                # Not squared in place: gradients can share memory, such as those of class token and position.
                gradients, means = of_units(point, *of_chunk)
                for name, gradient in gradients.items():
                    total[name] += gradient.to(total[name].dtype).square().sum(0)
                # A unit's mean counts as often as it has samples.
                log_likelihood += means.sum() * units[1].shape[1]
            terms += len(units[1])
            samples += len(labels)
    if terms == 0:
        raise GkpGsaError('there is no sample to take a Fisher diagonal over: batches is empty')
    return {name: value.div_(terms) for name, value in total.items()}, -log_likelihood.item() / samples


@torch.no_grad()
def estimated_statistics(
    model: nn.Module, parameters: Mapping[str, Tensor], batches: Iterable[tuple[Tensor, Tensor]]
) -> dict[str, Tensor]:
    """Return the running statistics of batch-norm that belong to `parameters`: means over batches.

    Everything else is in evaluation mode, and the model is left as it was. A batch of one image, which may have no
    variance, is left out.

    Args:
        model, parameters: as for `diagonal_fisher`.
        batches: of training samples; their labels are not looked at.

    Returns:
        Running means and variances by their names in the model, and how many batches they are of; empty for a model
        without batch-norm.

    Raises:
        GkpGsaError: if there is no batch of two images or more, or as `diagonal_fisher`.
    """
    point = _at(model, parameters)
    norms = {path: module for path, module in model.named_modules() if isinstance(module, _BatchNorm)}
    found = {
        f'{path}.{name}': torch.zeros_like(buffer)
        for path, module in norms.items()
        for name, buffer in module.named_buffers()
    }
    momenta = {module: module.momentum for module in norms.values()}
    seen = 0
    with evaluating(model), full_precision():
        try:
            for module in momenta:
                # Without momentum batch-norm takes the mean of all batches.
                module.training, module.momentum = True, None
            for inputs, _ in batches if norms else ():
                if len(inputs) > 1:
                    functional_call(model, {**point, **found}, (inputs,))
                    seen += 1
        finally:
            for module, momentum in momenta.items():
                module.momentum = momentum
    if norms and not seen:
        raise GkpGsaError('there is no batch of two samples or more to take batch-norm statistics of')
    return found


def _at(model: nn.Module, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the parameters in the precision, layout and place of the model's own."""
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) and module.running_mean is None:
            raise GkpGsaError(
                f'{name} keeps no running statistics, so one sample has no gradient of its own: '
                f'use a batch-norm with track_running_stats=True'
            )
    if not parameters:
        raise GkpGsaError('there must be at least one parameter to take a Fisher diagonal of')
    return _in_place_of(model, dict(model.named_parameters()), parameters, 'parameter')


def _in_place_of(
    model: nn.Module, own: Mapping[str, Tensor], given: Mapping[str, Tensor], what: str
) -> dict[str, Tensor]:
    for name, value in given.items():
        if name not in own:
            raise GkpGsaError(f'{type(model).__name__} has no {what} {name}')
        if value.shape != own[name].shape:
            raise GkpGsaError(f'{what} {name} must have shape {tuple(own[name].shape)}, not {tuple(value.shape)}')
    return {name: torch.empty_like(own[name]).copy_(value) for name, value in given.items()}


def _default_chunk_size(point: Mapping[str, Tensor]) -> int:
    size = sum(value.nbytes for value in point.values())
    return max(1, min(256 if next(iter(point.values())).is_cuda else 32, 2**31 // max(size, 1)))


def _draw(probabilities: Tensor, generator: torch.Generator | None) -> Tensor:
    device = probabilities.device if generator is None else generator.device
    return torch.multinomial(probabilities.to(device), 1, generator=generator)[:, 0].to(probabilities.device)
