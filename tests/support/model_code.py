"""What models write around their matrix products: one function a pattern, and the inputs to run it on.

`WRITTEN["name"]` is the function, a maker of its inputs, and the names its regions must have. Weights keep the dtype of
the model, positions are int64, and frequencies float32, as in models. The order chooses the dtype that the tests take.
"""

from __future__ import annotations

from model_activations import ACTIVATIONS
from model_attention import ATTENTION
from model_choices import ROUTERS, SAMPLING
from model_inputs import Written
from model_norms import NORMS, RESIDUALS
from model_rotary import ROTARY
from model_states import STATES

WRITTEN: dict[str, Written] = {
    **NORMS,
    **ACTIVATIONS,
    **ROTARY,
    **ATTENTION,
    **RESIDUALS,
    **ROUTERS,
    **STATES,
    **SAMPLING,
}
