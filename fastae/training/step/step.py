"""One training step: make the batch, forward, loss, backward, Adam; compiled, or one CUDA graph.

Two facts make it the same step for all reductions of a loss. Their gradients differ only by a constant factor
k, and Adam on k * g with eps is Adam on g with eps / k. So the step always differentiates the mean, which
overflows in no precision, and gives Adam eps / k.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from subprocess import CalledProcessError

import torch
from torch import Tensor, nn
from torch.backends import cudnn

from fastae.experiment.adam import EPSILON, Adam
from fastae.experiment.losses import Loss
from fastae.runs.checkpoint import TrainingState
from fastae.training.step import cuda_graph as graph
from fastae.training.step.kernel_check import are_right
from fastae.training.step.layers import set_tensors
from fastae.training.step.objective import TrainedModel
from fastae.utils.console import first_line

WARM_UP = 3
"""The number of steps before the CUDA graph is captured. Compiling, and the allocations of cuDNN and Adam,
happen in them."""

ATTEMPTS = 2
"""The number of captures that are tried: another thread may have disturbed the first."""

CAPTURED = "one CUDA graph per step"
"""What `TrainingStep.capture` returns if it succeeds; a note on cuDNN's kernels may follow."""


class TrainingStep:
    """The training of a model: `step(*inputs)` trains on one batch.

    A call returns the mean loss element and the mean squared error, two float32 scalars on the device.
    Reading one waits for the device, so the loop reads them only when it logs. The next call may overwrite
    them. The inputs' shapes must not change from call to call. If the model is on a GPU, inputs may lie in
    pinned memory.

    Args:
        trained: the model, whose weights are trained in place.
        loss: the loss.
        batch_shape: (N, 3, S, S), the batch of all ranks.
        lr: Adam's learning rate.
        make_batch: makes images (N, 3, S, S) from the inputs, as a loader's `make_batch` does. It is part of
            the step, so that the CUDA graph contains it.
    """

    def __init__(
        self,
        trained: TrainedModel,
        loss: Loss,
        *,
        batch_shape: Sequence[int],
        lr: float,
        make_batch: Callable[..., Tensor] = lambda images: images,
    ) -> None:
        self._trained = trained
        self._element = loss.element
        self.model = trained.model
        self.device = trained.hardware.device
        self.precision = trained.hardware.precision
        self.make_batch = make_batch
        eps = EPSILON / loss.gradient_scale(batch_shape)
        self.optimizer = Adam(dict(self.model.named_parameters()), lr, eps, trained.copies)
        self.scaler = self._new_scaler()
        self._objective = trained.objective(loss.element)
        self._captured: graph.GraphedFunction | None = None

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        if self._captured is not None:
            return self._captured(*inputs)
        return self._step(*(value.to(self.device, non_blocking=True) for value in inputs))

    def capture(self, example: Sequence[Tensor]) -> str:
        """On a GPU, captures the whole step as a CUDA graph, which later calls replay.

        It must be called before training. It trains a few steps on the inputs `example`, and undoes them.
        Returns what was done, in words; "" on a CPU.
        """
        if not graph.can_capture(self.device):
            return ""
        weights = {name: value.clone() for name, value in self.model.state_dict().items()}
        buffers = {name: value.clone() for name, value in self.model.named_buffers()}
        for _ in range(ATTEMPTS):
            try:
                self._captured = self._graphed(example)
                note = CAPTURED
            # CalledProcessError: from the C compiler that Triton starts.
            except (RuntimeError, CalledProcessError) as error:
                note = f"no CUDA graph ({first_line(error):.120})"
            self._undo(weights, buffers)
            if self.is_captured:
                break
        return ", ".join(filter(None, (note, self._trained.kernels)))

    @property
    def is_captured(self) -> bool:
        """Whether calls replay a CUDA graph."""
        return self._captured is not None

    def _choose_kernels(self, inputs: Sequence[Tensor]) -> str:
        """Makes cuDNN use its fastest kernels, or, if these compute wrong gradients, deterministic ones.

        Returns a note on the latter, in words.
        """
        if not cudnn.benchmark:
            return ""
        images, eager = self.make_batch(*inputs), self._trained.eager(self._element)
        try:
            if are_right(lambda: self.scaler.scale(eager(images)[0]).backward()):
                return ""
        except torch.OutOfMemoryError:  # a compiled step needs less memory
            return "cuDNN's kernels not compared: too little memory"
        cudnn.benchmark, cudnn.deterministic = False, True
        return "deterministic cuDNN kernels, since the fastest compute other gradients"

    def _graphed(self, example: Sequence[Tensor]) -> graph.GraphedFunction:
        """Captures the step, and verifies that a replay trains. Raises RuntimeError."""
        with graph.side_stream(self.device):
            inputs = [value.to(self.device) for value in example]
            if self._trained.kernels is None:
                self._trained.kernels = self._choose_kernels(inputs)
            for _ in range(WARM_UP):
                self._step(*inputs)
            self.optimizer.zero_grad(set_to_none=True)
            captured = graph.GraphedFunction(self._step, example, self.device)
        # A graph that was captured on another device or stream is empty. PyTorch only warns about that.
        before = self._updates()
        captured(*example)
        if self._updates() == before:
            raise RuntimeError("a replay did not update the model")
        return captured

    def _updates(self) -> object:
        """Returns what every step changes, also one in fp16 that overflows: Adam's count, or the scale."""
        return int(self.optimizer.step_count), self.scaler.state_dict()

    def _undo(self, weights: dict[str, Tensor], buffers: dict[str, Tensor]) -> None:
        """Sets model and optimizer back to their start; in place, since a graph holds the tensors.

        If the capture has failed, gradients may lie in the failed graph's memory, so they are dropped; those
        of a captured graph belong to it.
        """
        set_tensors(self.model, weights, buffers)
        if self._captured is None:
            self.optimizer.zero_grad(set_to_none=True)
            self.scaler = self._new_scaler()
        self.optimizer.reset()
        self.scaler.load_state_dict(self._new_scaler().state_dict())

    def _new_scaler(self) -> torch.amp.GradScaler:
        return torch.amp.GradScaler(self.device.type, enabled=self.precision.needs_scaling)

    def gradient_norm(self) -> Tensor:
        """Returns the 2-norm of the last step's gradients of the mean loss element: a float32 scalar.

        It is NaN if they are not finite, as in a step in fp16 that overflowed and therefore changed nothing.
        """
        # The gradients are not scaled any more: fused Adam has divided them by the loss scale, in place.
        gradients = [leaf.grad.float() for leaf in self.optimizer.leaves if leaf.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        return norm.where(norm.isfinite(), torch.nan)

    def state(self) -> TrainingState:
        """Returns the state that `restore` continues from. The tensors are the step's own, not copies."""
        return TrainingState(
            model=self.model.state_dict(),
            mean=self.optimizer.mean,
            square=self.optimizer.square,
            step=self.optimizer.step_count,
            scaler=self.scaler.state_dict(),
        )

    def restore(self, state: TrainingState) -> None:
        """Continues from a `state`, which `fastae.runs.checkpoint` has compared with the model.

        The tensors are changed in place, since a captured graph holds them.
        """
        self.model.load_state_dict(state.model)
        self.optimizer.restore(state.step, state.mean, state.square)
        if self.scaler.is_enabled() and state.scaler:
            self.scaler.load_state_dict(dict(state.scaler))

    def _step(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Trains on inputs that are on the device. This is what a CUDA graph contains."""
        images = self.make_batch(*inputs)
        self.optimizer.zero_grad(set_to_none=True)
        objective, error = self._objective(images)
        self.scaler.scale(objective).backward()
        # Adam takes the scale and the overflow flag as tensors: no wait for the device here.
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return objective.detach(), error
