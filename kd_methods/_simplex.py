"""The weights on the simplex whose combination of vectors is the shortest, given the vectors' inner products."""

from kd_methods._torch import Tensor, torch

ENUMERATED = 6  # so many vectors have at most 3^6 active sets, which are solved in one batch
STEPS = 30  # of the interior-point method for more vectors: each divides the gap by about 20
RIDGE = 1e-10  # of the mean squared length: makes the minimum unique, so that equal vectors get equal weights


def shortest_combination(gram: Tensor, cap: float = 1.0) -> Tensor:
    """v [K] that minimizes v' gram v subject to 0 <= v <= max(cap, 1/K) and sum v = 1, for gram [K,K], in fp64.

    gram is positive semidefinite, of any scale. Exact to about 1e-8, with a number of operations that depends on K
    alone, and without a word from the device. Of several minima it is the one with the least norm.
    """
    count = len(gram)
    if count * cap <= 1:  # the equal weights are the only ones
        return gram.new_full((count,), 1 / count, dtype=torch.float64)
    gram = gram.double()
    size = gram.diagonal().mean()
    gram = gram / torch.where(size > 0, size, 1.0)
    gram = gram + torch.eye(count, dtype=gram.dtype, device=gram.device) * RIDGE
    solve = _best_active_set if count <= ENUMERATED else _interior_point
    weights = solve(gram, cap).clamp(0, cap)
    return weights / weights.sum()


def _best_active_set(gram: Tensor, cap: float) -> Tensor:
    """Each weight is 0, the cap or free: the best of all such choices that keep the bounds.

    With weights c at the cap, the free ones f solve gram_ff v = l - gram_fc c for the number l that makes the sum 1.
    """
    count, device = len(gram), gram.device
    choice = torch.arange(3**count, device=device)[:, None] // 3 ** torch.arange(count, device=device) % 3  # [P,K]
    free, fixed = (choice == 2).to(gram.dtype), (choice == 1).to(gram.dtype) * cap
    pull = fixed @ gram  # [P,K]
    kept = free[:, :, None] * gram * free[:, None, :] + torch.diag_embed(1 - free)  # the identity where not free
    solved, _ = torch.linalg.solve_ex(kept, torch.stack([free, free * pull], -1))
    ones, pulled = solved.unbind(-1)
    level = (1 - fixed.sum(1) + pulled.sum(1)) / ones.sum(1)
    weights = fixed + level[:, None] * ones - pulled
    inside = torch.maximum(-weights, weights - cap).amax(1) <= 1e-9  # false for nan, where nothing is free
    length = ((weights @ gram) * weights).sum(1).masked_fill(~inside, torch.inf)
    return weights.index_select(0, length.argmin().unsqueeze(0)).squeeze(0)


def _interior_point(gram: Tensor, cap: float) -> Tensor:
    """A primal-dual path-following method; Nocedal and Wright, Numerical Optimization, 2006, section 16.6.

    `slack` [2,K] are the distances from both bounds, `dual` their multipliers. The sum stays 1 at every step.
    """
    count = len(gram)
    ones = torch.ones_like(gram[0])
    bound = cap if cap < 1 else 2.0  # a cap of 1 never binds
    slack = torch.stack([ones / count, bound - ones / count])
    dual = torch.ones_like(slack)
    for _ in range(STEPS):
        target = 0.05 * (slack * dual).mean() / slack
        ratio = dual / slack
        right = target[0] - target[1] - gram @ slack[0]
        solved, _ = torch.linalg.solve_ex(gram + torch.diag(ratio.sum(0)), torch.stack([right, ones], -1))
        move, level = solved.unbind(-1)
        move = move - move.sum() / level.sum() * level
        step = torch.stack([move, -move])
        dual_step = target - dual - ratio * step
        worst = torch.maximum((-step / slack).max(), (-dual_step / dual).max())
        length = 0.995 / worst.clamp_min(0.995)  # stays inside all bounds
        slack, dual = slack + length * step, dual + length * dual_step
    return slack[0]
