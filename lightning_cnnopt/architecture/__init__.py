"""Networks, and edits of any network."""

from lightning_cnnopt.architecture.callback import EditNetwork
from lightning_cnnopt.architecture.edits import SqueezeExcite
from lightning_cnnopt.architecture.functional import add_squeeze_excite
from lightning_cnnopt.architecture.networks import ConvNet, NetworkFactory
from lightning_cnnopt.architecture.preprocessing import Preprocessing

__all__ = ["ConvNet", "EditNetwork", "NetworkFactory", "Preprocessing", "SqueezeExcite", "add_squeeze_excite"]
