"""``torch.compile`` as a setting: a function compiled where that works, and as it is where it does not."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from pgembed.encoders.torch_models import first_line

log = logging.getLogger("pgembed.encoders")


class Compiled:
    """A function of a model, compiled at its first call for batches of any size.

    Where the compiled form fails and the function itself does not, as without a C++ compiler, it says so once and the
    function is called from then on. An input that is at fault raises what the function raises.
    """

    def __init__(
        self,
        spec: str,
        function: Callable[[Any], Any],
        torch: Any,  # noqa: ANN401
        out_of_memory: Callable[[Exception], bool],
    ) -> None:
        self._spec = spec
        self._function = function
        self._out_of_memory = out_of_memory
        self._compiled: Callable[[Any], Any] | None = torch.compile(function, dynamic=True)

    def __call__(self, value: Any) -> Any:  # noqa: ANN401
        """What the function gives."""
        if self._compiled is None:
            return self._function(value)
        try:
            return self._compiled(value)
        except Exception as error:
            if self._out_of_memory(error):
                raise
            failure = first_line(error)
        result = self._function(value)
        self._compiled = None
        log.warning("Encoder '%s' runs uncompiled, since torch.compile failed here: %s.", self._spec, failure)
        return result
