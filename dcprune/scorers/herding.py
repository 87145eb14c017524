"""Greedy choice whose mean follows the mean of the class."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from dcprune.artifacts import Embeddings
from dcprune.interfaces import ScoringContext

_BLOCK_ROWS = 8192


class Herding:
    """Herding of the class mean (Welling, ICML 2009; with exemplars Rebuffi et al., iCaRL, CVPR 2017).

    With z the rows centred at the class mean and Z the sum of those chosen so far, the next one is
    argmin |Z + z|^2 = argmin |z|^2 + 2 Z'z: the mean of the choice comes as close to the class mean as one more sample
    can bring it. Equals go by their index. (Some published code takes the argmax, which leads away from the mean.)

    Scores are the place in this order divided by the size of the class, in [0, 1): the order ends one sample after the
    ratio that is asked for, the others follow by the same criterion at its end. A smaller choice is the start of a
    larger one.

    The picks are those of the plain loop in float64: a step is one float32 product with Z, and where float32 cannot
    tell the best rows apart, float64 decides.

    Cost of a class: n k D multiplications for k picks, one after the other; memory: its n x D float32 matrix, twice.
    """

    keep: ClassVar[str] = "order"
    per_class: ClassVar[bool] = True

    def score(self, embeddings: Embeddings, context: ScoringContext) -> NDArray[np.float64]:
        """Scores float64 [N]: see above; lower is earlier."""
        scores = np.empty(len(embeddings.embeddings))
        with context.progress.task("score herding", len(scores), "samples") as task:
            for part in embeddings.by_class():
                picks = min(len(part), int(context.ratio * len(part)) + 1)
                order = _herded(part.matrix(), picks, context.device)
                scores[part.rows[order]] = np.arange(len(part)) / len(part)
                task.advance(len(part))
        return scores


def _herded(rows: NDArray[np.float32], count: int, device: torch.device) -> NDArray[np.int64]:
    """All rows of a class [n, D] in order, of which the first `count` are herded."""
    mean = rows.mean(axis=0, dtype=np.float64)
    centred = rows - mean.astype(np.float32)
    scale = 2.0 ** np.floor(np.log2(float(np.abs(centred).max()) or 1.0))  # exact, and keeps squares within float32
    centred /= np.float32(scale)
    norms = np.concatenate(
        [
            np.square(centred[row : row + _BLOCK_ROWS], dtype=np.float64).sum(axis=1)
            for row in range(0, len(rows), _BLOCK_ROWS)
        ]
    )
    longest = float(np.sqrt(norms.max()))
    offset = float(np.abs(mean).max()) / scale
    columns = torch.from_numpy(centred).to(device).T.contiguous()  # a product with these takes half the time
    total = np.zeros(rows.shape[1])
    taken = np.zeros(len(rows), dtype=bool)
    picks: list[int] = []
    while True:
        products = torch.from_numpy(total.astype(np.float32)).to(device) @ columns
        lengths = norms + 2 * products.cpu().numpy()
        lengths[taken] = np.inf
        if len(picks) == count:
            rest = np.flatnonzero(~taken)
            rest = rest[np.argsort(lengths[rest], kind="stable")]
            return np.concatenate([np.array(picks, dtype=np.int64), rest])
        # Far above the rounding of a product of D terms and of the centring.
        reach = longest + 2 * float(np.linalg.norm(total))
        tolerance = 2.0**-23 * (np.sqrt(rows.shape[1]) + 8) * (longest + offset) * reach
        close = np.flatnonzero(lengths <= lengths.min() + 2 * tolerance)
        exact = (rows[close] - mean) / scale
        pick = int(np.argmin(np.square(exact).sum(axis=1) + 2 * (exact @ total)))
        picks.append(int(close[pick]))
        taken[close[pick]] = True
        total += exact[pick]
