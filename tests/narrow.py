"""Fastae with narrow channels: a checkpoint takes 200 kB instead of 105 MB. Everything else is unchanged."""

from fastae.experiment import model

ARTICLES = {"ENCODER_CHANNELS": model.ENCODER_CHANNELS, "DECODER_CHANNELS": model.DECODER_CHANNELS}

model.ENCODER_CHANNELS = model.DECODER_CHANNELS = (4, 4, 4, 4, 4)

if __name__ == "__main__":
    from fastae.__main__ import main

    main()
