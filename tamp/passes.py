"""Running a model, or part of one, and leaving no trace in it."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import nn
from tqdm.auto import tqdm


class Done(Exception):
    """Raised inside a hook to leave a forward pass whose rest is not needed."""


@contextlib.contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Set a model to evaluation mode and run its modules uncompiled, so that hooks see them; restore both on leaving.

    Gradients are off inside; so are inference mode, whose tensors cannot be written to later, autocast, which keeps copies
    of weights that change, other defaults of torch for new tensors than float32 on the CPU, and, on a GPU before Ampere,
    attention that shares keys among heads (:func:`repeated_keys`).
    """
    wrapped = any("_orig_mod" in module._modules for module in model.modules())  # by torch.compile, slow to import
    eager = torch.compiler.set_stance("force_eager") if wrapped else contextlib.nullcontext()
    training = [module for module in model.modules() if module.training]
    compiled = [(module, call) for module in model.modules() if (call := module._compiled_call_impl) is not None]
    model.eval()
    for module, _ in compiled:
        module._compiled_call_impl = None
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with contextlib.ExitStack() as stack:
            for kind in filter(torch.is_autocast_enabled, ("cpu", "cuda")):
                stack.enter_context(torch.autocast(kind, enabled=False))
            for each in (eager, torch.inference_mode(False), torch.no_grad(), repeated_keys()):
                stack.enter_context(each)
            if torch.get_default_device().type != "cpu":  # inside, every call of torch goes through Python
                stack.enter_context(torch.device("cpu"))
            yield
    finally:
        torch.set_default_dtype(before)
        for module in training:
            module.training = True
        for module, call in compiled:
            module._compiled_call_impl = call


@contextlib.contextmanager
def repeated_keys() -> Iterator[None]:
    """Let transformers repeat keys and values for heads that share them on a GPU before Ampere: no fused kernel does."""
    from transformers.integrations import sdpa_attention

    original = getattr(sdpa_attention, "use_gqa_in_sdpa", lambda *_, **named: False)  # some versions decide elsewhere

    def shares(attention_mask, key, *more, **named) -> bool:
        old = key.is_cuda and torch.cuda.get_device_capability(key.device) < (8, 0)
        return not old and original(attention_mask, key, *more, **named)

    sdpa_attention.use_gqa_in_sdpa = shares
    try:
        yield
    finally:
        sdpa_attention.use_gqa_in_sdpa = original


@contextlib.contextmanager
def hooks(*handles) -> Iterator[None]:
    """Remove hook handles on leaving, also after an exception."""
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def replaced(modules: Sequence[nn.Module], forward: Callable) -> Iterator[None]:
    """Let modules compute something else.

    Args:
        modules: what to replace.
        forward: ``f(position, original, args, kwargs)``, with a module's place in the list and what it computes by itself.
    """
    own = [vars(module).get("forward") for module in modules]  # of the instance, as offloading sets it

    def stand_in(position: int, original: Callable) -> Callable:
        return lambda *args, **kwargs: forward(position, original, args, kwargs)

    try:
        for position, module in enumerate(modules):
            module.forward = stand_in(position, module.forward)
        yield
    finally:
        for module, before in zip(modules, own):
            if before:
                module.forward = before
            else:
                vars(module).pop("forward", None)


def steps(items: Iterable, description: str, progress: bool) -> Iterable:
    """Wrap an iterable in a bar unless ``progress`` is off."""
    return tqdm(items, desc=description, disable=not progress, leave=False)
