"""The 20 superclasses of CIFAR-100's classes (Krizhevsky, "Learning multiple layers of features from tiny images",
2009), spelled as in the original archive; the Hub's uoft-cs/cifar100 spells one class differently."""

from __future__ import annotations

from collections.abc import Sequence

CIFAR100 = {
    "aquatic_mammals": ("beaver", "dolphin", "otter", "seal", "whale"),
    "fish": ("aquarium_fish", "flatfish", "ray", "shark", "trout"),
    "flowers": ("orchid", "poppy", "rose", "sunflower", "tulip"),
    "food_containers": ("bottle", "bowl", "can", "cup", "plate"),
    "fruit_and_vegetables": ("apple", "mushroom", "orange", "pear", "sweet_pepper"),
    "household_electrical_devices": ("clock", "keyboard", "lamp", "telephone", "television"),
    "household_furniture": ("bed", "chair", "couch", "table", "wardrobe"),
    "insects": ("bee", "beetle", "butterfly", "caterpillar", "cockroach"),
    "large_carnivores": ("bear", "leopard", "lion", "tiger", "wolf"),
    "large_man-made_outdoor_things": ("bridge", "castle", "house", "road", "skyscraper"),
    "large_natural_outdoor_scenes": ("cloud", "forest", "mountain", "plain", "sea"),
    "large_omnivores_and_herbivores": ("camel", "cattle", "chimpanzee", "elephant", "kangaroo"),
    "medium_mammals": ("fox", "porcupine", "possum", "raccoon", "skunk"),
    "non-insect_invertebrates": ("crab", "lobster", "snail", "spider", "worm"),
    "people": ("baby", "boy", "girl", "man", "woman"),
    "reptiles": ("crocodile", "dinosaur", "lizard", "snake", "turtle"),
    "small_mammals": ("hamster", "mouse", "rabbit", "shrew", "squirrel"),
    "trees": ("maple_tree", "oak_tree", "palm_tree", "pine_tree", "willow_tree"),
    "vehicles_1": ("bicycle", "bus", "motorcycle", "pickup_truck", "train"),
    "vehicles_2": ("lawn_mower", "rocket", "streetcar", "tank", "tractor"),
}
HUB_SPELLINGS = {"cra": "crab"}
_NUMBERS = {name: number for number, names in enumerate(CIFAR100.values()) for name in names}


def superclasses_of(class_names: Sequence[str]) -> tuple[list[int], list[str]] | None:
    """The superclass number of each class, and the superclasses' names; None unless the classes are CIFAR-100's."""
    names = in_one_spelling(class_names)
    if sorted(names) != sorted(_NUMBERS):
        return None
    return [_NUMBERS[name] for name in names], list(CIFAR100)


def in_one_spelling(class_names: Sequence[str]) -> list[str]:
    """The class names; those of CIFAR-100 as the archive spells them."""
    own = [HUB_SPELLINGS.get(name, name) for name in class_names]
    return own if set(own) == set(_NUMBERS) else list(class_names)
