"""Lowers the training step on a hollow GPU and prints what it launches; the last line is JSON."""

from __future__ import annotations

import json

import click

from scripts.hollow_gpu.driver import install, relaunch


@click.command(help=__doc__)
@click.option("--loss", default="minibatch_bce", show_default=True)
@click.option("--batch-size", default=64, show_default=True)
@click.option("--amp/--no-amp", default=True, show_default=True)
@click.option("--brief", is_flag=True, help="Omit the list of kernels.")
@click.option("--inductor", "settings", multiple=True, metavar="NAME=VALUE", help="A setting of Inductor.")
def main(loss: str, batch_size: int, amp: bool, brief: bool, settings: tuple[str, ...]) -> None:
    relaunch()
    import torch
    import torch._inductor.config as inductor

    from fastae.config import TrainConfig
    from fastae.device.choose import Precision
    from scripts.hollow_gpu import lowering, training

    install()
    for name, value in (setting.split("=") for setting in settings):
        setattr(inductor, name, json.loads(value))
    config = TrainConfig(loss=loss, batch_size=batch_size, amp=amp)
    made = lowering.make_step(config)
    counts, kernels, libraries = lowering.lower(made)
    if not brief:
        print("\n".join(lowering.lines(kernels, libraries)))
    print(f"a step      {counts}")
    inputs = made.inputs
    print(f"its images  {lowering.counted(lambda: made.loader.make_batch(*inputs))}")
    note, replay = lowering.record(made)
    print(f"recording   {note}")
    print(f"a replay    {replay}")
    found = lowering.summary(kernels, counts, made.step.is_captured, replay)
    control = lowering.make_step(config, kind=lowering.ReadsItsLoss, trained=made.trained)
    print(f"control     a step that reads its loss: {lowering.record(control)[0]}")
    counts, spilling = lowering.lower_shared(config)
    print(f"two ranks   {counts}, {spilling} spill")
    for name, precision in (("fp16", Precision(torch.float16, "fp16")), ("float32", Precision(None, "TF32"))):
        other = lowering.make_step(config, precision=precision)
        counts, kernels, _ = lowering.lower(other)
        print(f"{name:11} {counts}, {lowering.spills(kernels)} spill; {lowering.record(other)[0]}")
    syncs = training.drive(config)
    print(f"whole runs  host syncs of iterations that only train: {syncs}")
    found["host_syncs"] += sum(syncs.values())
    print(json.dumps(found))


if __name__ == "__main__":
    main()
