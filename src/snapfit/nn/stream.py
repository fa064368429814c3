"""One decoder layer in memory at a time.

The obvious way to stream a model is to re-write its forward pass: embed, build masks and rotary
tables, loop over layers, norm, head. Every architecture does this a little differently (two
rotary tables in Gemma 3, scaled embeddings and logits in Granite, capped logits in Gemma), and a
copy goes wrong silently. Here transformers' own forward pass runs, with a proxy in the place of
every decoder layer. A proxy computes nothing: it writes down with which masks, positions and
rotary tables its layer would have been called. Those depend on the shape of the batch only, since
all windows are equally long and nothing is padded, so they are recorded once a shape. To embed,
the first proxy keeps what it is given; for logits, the last proxy returns the hidden state at hand.

Shape suffixes: B sequences, b sequences of a micro-batch, T tokens, D hidden size, V vocabulary.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from snapfit.core.errors import SnapfitError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from transformers import PreTrainedModel

    from snapfit.nn.reader import WeightReader

MICRO_BATCH_TOKENS = 2048
"""Tokens that go through a layer together: enough for full speed, small beside a layer."""


@dataclass(frozen=True, kw_only=True)
class LayerCall:
    """Everything but the hidden state that the base model passes to a decoder layer."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class LayerStream:
    """Runs a causal language model a decoder layer at a time.

    Args:
        model: on the meta device, in eval mode (`models.describe.empty_model`).
        reader: gives its weights.
        layers_path: qualified name of the list of decoder layers, e.g. 'model.layers'.
        device: where layers run; hidden states stay in main memory.
        dtype: of weights and activations.

    """

    def __init__(
        self,
        model: PreTrainedModel,
        reader: WeightReader,
        layers_path: str,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.model = model
        self.reader = reader
        self.layers_path = layers_path
        self.device = torch.device(device)
        self.dtype = dtype
        self._calls: dict[tuple[int, int], tuple[LayerCall, ...]] = {}
        self._returns_tuple = False

    def __len__(self) -> int:
        return len(self._layers)

    @property
    def hidden_size(self) -> int:
        """Width D of the hidden state."""
        return int(self.model.config.get_text_config().hidden_size)

    def prefix(self, index: int) -> str:
        """Qualified name of decoder layer `index`."""
        return f"{self.layers_path}.{index}"

    @contextlib.contextmanager
    def layer(self, index: int) -> Iterator[nn.Module]:
        """Decoder layer `index` with its weights, which are released on leaving."""
        layer = self._layers[index]
        with self._materialised({self.prefix(index): layer}):
            yield layer

    @torch.no_grad()
    def embed(self, ids_BT: Tensor) -> Tensor:
        """Hidden state at the input of the first layer, (B, T, D).

        Raises:
            SnapfitError: an embedding is not finite.

        """
        batches: list[Tensor] = []

        def keep(hidden_bTD: Tensor, index: int) -> Tensor:
            if index == 0:
                batches.append(hidden_bTD.to("cpu", copy=True))
            return hidden_bTD

        with self._outer(skip=self._head), self._proxies(keep):
            for rows in micro_batches(*ids_BT.shape):
                self.model.base_model(input_ids=ids_BT[rows].to(self.device), use_cache=False)
        hidden_BTD = torch.cat(batches)
        if not torch.isfinite(hidden_BTD).all():
            raise SnapfitError("the token embeddings hold NaN or infinity; the model is broken")
        return hidden_BTD

    @contextlib.contextmanager
    def head(self) -> Iterator[Callable[[Tensor], Tensor]]:
        """A function from the last layer's output (b, T, D) to logits (b, T, V); differentiable.

        Final norm, logit scale and soft cap are the model's own. The head's weights are in memory
        until the block is left.
        """
        hidden_bTD = torch.empty(0)
        last = len(self) - 1

        def replace(ignored_bTD: Tensor, index: int) -> Tensor:
            return hidden_bTD if index == last else ignored_bTD

        def logits(given_bTD: Tensor) -> Tensor:
            nonlocal hidden_bTD
            hidden_bTD = given_bTD
            zeros_bTD = torch.zeros_like(given_bTD, requires_grad=False)
            output: Tensor = self.model(inputs_embeds=zeros_bTD, use_cache=False).logits
            return output

        embedding = self.model.get_input_embeddings()
        with self._outer(skip=embedding), self._proxies(replace):
            yield logits

    @torch.no_grad()
    def final(self, hidden_BTD: Tensor) -> Tensor:
        """What the head reads, (B, T, D), from the last layer's output: after the final norm."""
        given_BTD = hidden_BTD.to(self.device)
        outer = self._outer(skip=self.model.get_input_embeddings(), also=self._head)
        with outer, self._proxies(lambda _ignored, _index: given_BTD):
            output = self.model.base_model(inputs_embeds=given_BTD, use_cache=False)
        final_BTD: Tensor = output.last_hidden_state.cpu()
        return final_BTD

    def call_layer(self, index: int, layer: nn.Module, hidden_bTD: Tensor) -> Tensor:
        """Output (b, T, D) of `layer`, called as the base model calls layer `index`."""
        call = self._calls_for(hidden_bTD)[index]
        output = layer(hidden_bTD, *call.args, **call.kwargs)
        output_bTD: Tensor = output[0] if isinstance(output, tuple) else output
        return output_bTD

    @torch.no_grad()
    def run_layer(self, index: int, layer: nn.Module, hidden_BTD: Tensor) -> Tensor:
        """Output (B, T, D) of `layer` in the place of layer `index`, in micro-batches.

        Args:
            index: place in the model; decides masks and rotary tables.
            layer: that layer or a compressed one, with its weights in memory.
            hidden_BTD: input of the layer, in main memory; not changed.

        Raises:
            SnapfitError: the output is not finite.

        """
        output_BTD = torch.empty_like(hidden_BTD)
        for rows in micro_batches(*hidden_BTD.shape[:2]):
            output_BTD[rows] = self.call_layer(index, layer, hidden_BTD[rows].to(self.device)).cpu()
        self.require_finite(output_BTD, index, "output", layer)
        return output_BTD

    def require_finite(
        self, values: Tensor, index: int, what: str, layer: nn.Module | None = None
    ) -> None:
        """Raise on NaN or infinity.

        Raises:
            SnapfitError: names the layer, and the weight when one of `layer`'s is at fault.

        """
        if torch.isfinite(values).all():
            return
        for name, weight in layer.named_parameters() if layer is not None else ():
            if not torch.isfinite(weight).all():
                raise SnapfitError(
                    f"{self.prefix(index)}.{name} holds NaN or infinity; the model is broken"
                )
        raise SnapfitError(
            f"the {what} of layer {index} ({self.prefix(index)}) holds NaN or infinity; "
            "the weights overflow in float32 or the model is broken"
        )

    @property
    def _head(self) -> nn.Module | None:
        head: nn.Module | None = self.model.get_output_embeddings()  # type: ignore[no-untyped-call]
        return head

    @property
    def _layers(self) -> nn.ModuleList:
        layers = self.model.get_submodule(self.layers_path)
        assert isinstance(layers, nn.ModuleList)
        return layers

    @torch.no_grad()
    def _calls_for(self, hidden_bTD: Tensor) -> tuple[LayerCall, ...]:
        shape = (hidden_bTD.shape[0], hidden_bTD.shape[1])
        if shape not in self._calls:
            calls: list[LayerCall] = []
            shapes: set[torch.Size] = set()

            def record(given_bTD: Tensor, _index: int) -> Tensor:
                shapes.add(given_bTD.shape)
                return given_bTD

            zeros_bTD = torch.zeros_like(hidden_bTD, requires_grad=False)
            embedding = self.model.get_input_embeddings()
            with self._outer(skip=embedding, also=self._head), self._proxies(record, calls):
                self.model.base_model(inputs_embeds=zeros_bTD, use_cache=False)
            if shapes != {hidden_bTD.shape} and not self._returns_tuple:
                # The base model takes element 0 of what its layers return.
                self._returns_tuple = True
                return self._calls_for(hidden_bTD)
            self._calls[shape] = tuple(calls)
        return self._calls[shape]

    @contextlib.contextmanager
    def _proxies(
        self, answer: Callable[[Tensor, int], Tensor], calls: list[LayerCall] | None = None
    ) -> Iterator[None]:
        layers = self._layers
        originals = list(layers)
        try:
            for index, layer in enumerate(originals):
                layers[index] = _Proxy(layer, index, answer, calls, self._returns_tuple)
            yield
        finally:
            for index, layer in enumerate(originals):
                layers[index] = layer

    @contextlib.contextmanager
    def _outer(self, *, skip: nn.Module | None, also: nn.Module | None = None) -> Iterator[None]:
        modules = {
            name: module
            for name, module in self.model.named_modules()
            if not f"{name}.".startswith(f"{self.layers_path}.")
            and module not in (skip, also)
            and next(module.parameters(recurse=False), None) is not None
        }
        with self._materialised(modules):
            yield

    @contextlib.contextmanager
    def _materialised(self, modules: dict[str, nn.Module]) -> Iterator[None]:
        try:
            for name, module in modules.items():
                self.reader.load_into(module, name, device=self.device, dtype=self.dtype)
                module.requires_grad_(requires_grad=False)
            yield
        finally:
            for module in modules.values():
                self.reader.release(module)


class _Proxy(nn.Module):
    """Stands in for a decoder layer; other attributes are the layer's own."""

    def __init__(
        self,
        layer: nn.Module,
        index: int,
        answer: Callable[[Tensor, int], Tensor],
        calls: list[LayerCall] | None,
        returns_tuple: bool,
    ) -> None:
        super().__init__()
        self.__dict__["_stands_for"] = layer  # not a child: its weights are not here
        self._index = index
        self._answer = answer
        self._calls = calls
        self._returns_tuple = returns_tuple

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_stands_for"], name)

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        if self._calls is not None:
            self._calls.append(LayerCall(args=args, kwargs=kwargs))
        answer = self._answer(hidden_states, self._index)
        return (answer,) if self._returns_tuple else answer


def micro_batches(sequences: int, tokens: int, *, single: bool = False) -> list[slice]:
    """Slices of whole sequences, about `MICRO_BATCH_TOKENS` tokens each, or one sequence each."""
    size = 1 if single else max(1, MICRO_BATCH_TOKENS // tokens)
    return [slice(start, min(start + size, sequences)) for start in range(0, sequences, size)]
