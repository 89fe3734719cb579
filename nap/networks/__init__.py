"""Networks, one file a family, each taking the same `norm=` argument."""

from nap.networks.atari import NatureCNN
from nap.networks.cnn import CNN
from nap.networks.functions import Network, as_functions
from nap.networks.mlp import MLP

__all__ = ["CNN", "MLP", "NatureCNN", "Network", "as_functions"]
