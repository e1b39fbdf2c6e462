"""Random and degenerate logits and labels, on which every metric is tested."""

import torch


def sample(count=500, classes=10, decimals=None, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (count,), generator=generator)
    logits = torch.randn(count, classes, generator=generator) + torch.nn.functional.one_hot(labels, classes)
    return (logits.round(decimals=decimals) if decimals is not None else logits), labels


def turned(labels, classes):
    """Predicted classes that are all wrong."""
    return (labels + 1) % classes


def case(name):
    """(logits [N,C], labels [N]) of the case `name`."""
    logits, labels = sample(510)
    if name == "random":
        return logits, labels
    if name == "ties":
        return sample(510, decimals=0)
    if name == "constant":
        return torch.full_like(logits, 3.0), labels
    if name == "perfect":
        return 20.0 * torch.nn.functional.one_hot(labels, 10), labels
    if name == "all wrong":
        return 20.0 * torch.nn.functional.one_hot(turned(labels, 10), 10), labels
    if name == "one image":
        return logits[:1], labels[:1]
    if name == "one class":
        return logits, torch.full_like(labels, 4)
    if name == "a class is missing":
        return logits, torch.where(labels == 9, 4, labels)
    if name == "two classes":
        return sample(510, 2)
    if name == "a thousand classes":
        return sample(300, 1000)
    assert name == "huge"
    return 1e4 * logits.sign(), labels


CASES = [
    "random", "ties", "constant", "perfect", "all wrong", "one image", "one class", "a class is missing",
    "two classes", "a thousand classes", "huge",
]  # fmt: skip
