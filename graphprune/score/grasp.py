"""GraSP: what preserves the flow of gradients, with its sign."""

from __future__ import annotations

from graphprune.score.base import Parts, Request
from graphprune.score.gradients import COOLED, ByGradient, by_gradient, told
from graphprune.score.normalise import gaussian


def criterion(request: Request) -> Parts:
    """Score indices by the sum of w (H g) over the elements that they own; scores may be negative.

    The authors give a connection S = -w (H g), an estimate of how the squared norm of the gradient changes without it,
    and remove those of the largest S: what goes is what lets gradients flow more. So here, where the lowest scores go,
    it is -S. Logits are divided by 200 before softmax, as in their code, so that the loss is about linear. Single
    connections go there, channels here: their sums. Normalisations use their running statistics here, the batch's
    there; their division by |sum of all S| changes no order.

    Source: Wang, Zhang, Grosse, Picking Winning Tickets Before Training by Preserving Gradient Flow (ICLR 2020), the
    score of gradient signal preservation.
    """
    return told(request, by_gradient(request, (COOLED,), lambda w, s: w * s[COOLED]), gaussian)


GRASP = ByGradient(criterion, (COOLED,))
