"""Cross-entropy in plain PyTorch: the oracle of `regops.functional.cross_entropy`.

Differentiable any number of times and in every mode that PyTorch's own ops are, it is also what the
fused op falls back on for double backward, forward-mode AD and vmap.
"""

from __future__ import annotations

import torch
from torch import Tensor


def smoothed(label_smoothing: float, smoothing: str, classes: int) -> tuple[float, float]:
    """(keep, off) such that the smoothed target is keep x target + off.

    "uniform" spreads label_smoothing over all K classes, "others" over the K - 1 that are not the
    label: others(a) = uniform(a K / (K - 1)).
    """
    if smoothing == "others":
        label_smoothing *= classes / (classes - 1) if classes > 1 else 0.0
    return 1.0 - label_smoothing, label_smoothing / classes


def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    *,
    smoothing: str = "uniform",
    z_loss: float = 0.0,
    entropy_weight: float = 0.0,
    target_b: Tensor | None = None,
    lam: float | Tensor | None = None,
    num_items: int | Tensor | None = None,
    return_lse: bool = False,
    inplace_backward: bool = False,
    check: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """As `regops.functional.cross_entropy`, except that a target out of range gives nan.

    With log-probabilities lp of K classes, class weights w, and a row's labels a (and b, of which
    it has a share of 1 - lam):

        l = sum_c t_c (-lp_c) + omega (z_loss lse^2 - entropy_weight H),   H = -sum_c p_c lp_c,
        t_c = w_c (keep (lam [c = a] + (1 - lam) [c = b]) + off u),
        omega = lam w_a + (1 - lam) w_b, ignored labels counting 0; u likewise without w.

    The mean over rows is sum l / sum omega. For probabilities q, t_c = w_c (keep q_c + off),
    omega = 1, and the mean is sum l / rows.
    """
    x = converted = input.to(torch.promote_types(input.dtype, torch.float32))
    if x.dim() == 1:
        x = x.unsqueeze(0)
    classes = x.shape[1]
    keep, off = smoothed(label_smoothing, smoothing, classes)
    rows = (x.shape[0], *x.shape[2:])
    unbatched = input.dim() == 1
    w = (
        torch.ones(classes, dtype=x.dtype, device=x.device)
        if weight is None
        else weight.to(x.dtype)
    )
    w = w.reshape(1, -1, *(1 for _ in rows[1:]))

    if target.is_floating_point():
        q = (target.unsqueeze(0) if unbatched else target).to(x.dtype)
        ignored = torch.zeros(rows, dtype=torch.bool, device=x.device)
        omega = torch.ones(rows, dtype=x.dtype, device=x.device)
        lp = x.log_softmax(1)
        loss = -(w * (keep * q + off) * lp).sum(1)
    else:
        lam_rows = torch.as_tensor(1.0 if lam is None else lam, dtype=x.dtype, device=x.device)
        if lam_rows.dim() > 0:
            lam_rows = lam_rows.reshape(*lam_rows.shape, *(1,) * (len(rows) - lam_rows.dim()))
        pair = [(target, lam_rows)]
        if target_b is not None:
            pair.append((target_b, 1.0 - lam_rows))
        pair = [(label.unsqueeze(0) if unbatched else label, share) for label, share in pair]
        labels = [(label.to(torch.int64), share) for label, share in pair]
        ignored = torch.stack([label == ignore_index for label, _ in labels]).all(0)
        # Selected, not multiplied: an ignored row's gradient is 0 even where its logits are nan.
        x = torch.where(ignored.unsqueeze(1), torch.zeros_like(x), x)
        lp = x.log_softmax(1)
        loss = torch.zeros(rows, dtype=x.dtype, device=x.device)
        omega = torch.zeros_like(loss)
        for label, share in labels:
            counts = label != ignore_index
            is_class = (label >= 0) & (label < classes)
            index = torch.where(is_class, label, torch.zeros_like(label))
            w_label = w.expand_as(x).gather(1, index.unsqueeze(1)).squeeze(1)
            w_label = torch.where(is_class | ~counts, w_label, torch.full_like(w_label, torch.nan))
            of_label = keep * w_label * -lp.gather(1, index.unsqueeze(1)).squeeze(1)
            of_all = off * -(w * lp).sum(1) if off != 0.0 else torch.zeros_like(of_label)
            loss = loss + torch.where(counts, share * (of_label + of_all), 0.0)
            omega = omega + torch.where(counts, share * w_label, 0.0)

    lse = x.logsumexp(1)
    if z_loss != 0.0:
        loss = loss + omega * z_loss * lse.square()
    if entropy_weight != 0.0:
        p = lp.exp()
        negative_entropy = (p * torch.where(p == 0.0, torch.zeros_like(lp), lp)).sum(1)
        loss = loss + omega * entropy_weight * negative_entropy
    loss = torch.where(ignored, torch.zeros_like(loss), loss)

    if reduction == "none":
        result = loss.squeeze(0) if unbatched else loss
    elif reduction == "sum":
        result = loss.sum()
    else:
        result = loss.sum() / (omega.sum() if num_items is None else num_items)
        result = result.to(x.dtype)  # which a num_items of shape () and float64 would widen
    if not return_lse:
        return result
    return result, converted.logsumexp(0 if unbatched else 1)
