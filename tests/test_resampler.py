"""The page's resampler, under Node."""

from __future__ import annotations

import json
import subprocess

import numpy as np
import pytest

from tests.conftest import ROOT


@pytest.mark.parametrize(
    ("from_rate", "to_rate", "frequency", "loudest_db", "min_snr_db"),
    [
        (48000, 16000, 1000, -3.0, 80),
        (48000, 16000, 6500, -3.0, 80),
        (48000, 16000, 9000, -80, None),
        (44100, 16000, 3000, -3.0, 80),
        (44100, 16000, 8900, -80, None),
        (24000, 48000, 5000, -3.0, 80),
        (24000, 44100, 9000, -3.0, 80),
    ],
)
def test_the_resampler_passes_speech_and_no_alias(from_rate, to_rate, frequency, loudest_db, min_snr_db):
    found = json.loads(
        subprocess.run(
            ["node", "--input-type=module", "-e", SINE, str(from_rate), str(to_rate), str(frequency)],
            capture_output=True,
            text=True,
            check=True,
            cwd=ROOT,
        ).stdout
    )
    output = np.array(found[to_rate // 5 : -to_rate // 10])
    time_s = np.arange(len(output)) / to_rate
    basis = np.stack([np.sin(2 * np.pi * frequency * time_s), np.cos(2 * np.pi * frequency * time_s)], axis=1)
    level_db = 10 * np.log10(np.mean(output**2) + 1e-20)
    assert level_db < loudest_db + 0.1
    if min_snr_db is not None:
        fitted, *_ = np.linalg.lstsq(basis, output, rcond=None)
        assert level_db > loudest_db - 0.2
        assert 10 * np.log10(np.mean(output**2) / np.mean((output - basis @ fitted) ** 2)) > min_snr_db


# One second of a sine through the page's resampler, in the audio thread's blocks of 128.
SINE = """
import { Resampler } from "./frontend/static/resampler.js";
const [from, to, frequency] = process.argv.slice(1).map(Number);
const resampler = new Resampler(from, to);
const output = [];
for (let start = 0; start < from; start += 128) {
  const block = Float32Array.from({ length: 128 }, (_, i) => Math.sin((2 * Math.PI * frequency * (start + i)) / from));
  output.push(...resampler.process(block));
}
console.log(JSON.stringify(output));
"""
