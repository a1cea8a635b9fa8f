"""Any vision-language model behind one interface, and the one way of pixels into all of them."""

from grafalign.models.load import load_model
from grafalign.models.model import Model
from grafalign.models.pixels import Preprocessing, to_input

__all__ = ['Model', 'Preprocessing', 'load_model', 'to_input']
