"""The ops as modules, under the names of torch.nn."""

from regops.nn.cross_entropy import CrossEntropyLoss
from regops.nn.dropconnect import DropConnect
from regops.nn.dropconnect_linear import DropConnectLinear
from regops.nn.dropout import Dropout

__all__ = ["CrossEntropyLoss", "DropConnect", "DropConnectLinear", "Dropout"]
