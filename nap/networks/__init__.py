"""Networks, one file a family, each taking the same `norm=` argument."""

from nap.networks.atari import QNetwork, Quantiles
from nap.networks.cnn import CNN
from nap.networks.files import Loaded, load, save
from nap.networks.functions import Network, StatefulNetwork, as_functions, as_stateful_functions
from nap.networks.mlp import MLP
from nap.networks.recipe import Recipe
from nap.networks.resnet import ResNet, resnet_18, resnet_50
from nap.networks.transformer import Transformer, cross_entropy

__all__ = [
    "CNN",
    "MLP",
    "Loaded",
    "Network",
    "QNetwork",
    "Quantiles",
    "Recipe",
    "ResNet",
    "StatefulNetwork",
    "Transformer",
    "as_functions",
    "as_stateful_functions",
    "cross_entropy",
    "load",
    "resnet_18",
    "resnet_50",
    "save",
]
