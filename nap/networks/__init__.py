"""Networks, one file a family, each taking the same `norm=` argument."""

from nap.networks.atari import QNetwork, Quantiles
from nap.networks.cnn import CNN
from nap.networks.functions import Network, as_functions
from nap.networks.mlp import MLP

__all__ = ["CNN", "MLP", "Network", "QNetwork", "Quantiles", "as_functions"]
