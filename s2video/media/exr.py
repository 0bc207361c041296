"""A writer of OpenEXR sequences with OpenImageIO: half floats of linear light, BT.709 primaries.

Knows neither tensors nor the final name of the folder.
"""

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError, S2VideoError
from .formats import VideoSpec, frame_name
from .timecode import Timecode

_BT709 = (0.64, 0.33, 0.30, 0.60, 0.15, 0.06, 0.3127, 0.3290)  # x, y of red, green, blue and white (D65)


def check_openimageio() -> None:
    """Raise InputError unless OpenImageIO is installed."""
    if find_spec("OpenImageIO") is None:
        raise InputError("codec exr needs OpenImageIO; pip install 's2video[exr]', or choose another output.codec")


class ExrSequence:
    """Writer of numbered frames into `folder`, named after the sequence `path`.

    Every header has the frame rate as a fraction, the colour space, `texts` under their keys, and the frame's timecode
    if the spec has one.
    """

    def __init__(self, folder: Path, path: Path, spec: VideoSpec, texts: Mapping[str, str]) -> None:
        check_openimageio()
        self._folder, self._path, self._spec, self._texts = folder, path, spec, texts
        self._first = None if spec.timecode is None else Timecode.parse(spec.timecode, spec.fps)
        self.num_frames = 0

    def send(self, pixels: NDArray[np.float16]) -> None:
        """Write the next frame, [H, W, 3]. Raise S2VideoError if that fails."""
        import OpenImageIO as oiio

        height, width, channels = pixels.shape
        header = oiio.ImageSpec(width, height, channels, oiio.HALF)
        header.attribute("compression", "zip")
        header.attribute("DateTime", "")  # otherwise OpenImageIO stores the time of writing as the date of capture
        header.attribute("oiio:ColorSpace", "lin_rec709_scene")
        header.attribute("chromaticities", oiio.TypeDesc("float[8]"), _BT709)
        fps = self._spec.fps
        # OpenEXR's own name; OpenImageIO would not translate "FramesPerSecond", which readers do not know
        header.attribute("framesPerSecond", oiio.TypeDesc("rational"), (fps.numerator, fps.denominator))
        if self._first is not None:
            label = self._first.later(self.num_frames)
            header.attribute("smpte:TimeCode", oiio.TypeDesc("timecode"), (label.packed(), 0))
        for key, text in self._texts.items():
            header.attribute(key, text)
        name = str(self._folder / frame_name(self._path, self._spec.start_number + self.num_frames))
        output = oiio.ImageOutput.create(name)
        if output is None:
            raise S2VideoError(f"OpenImageIO cannot write EXR ({oiio.geterror()}); reinstall OpenImageIO")
        # `close` writes the rest, and may fail too
        if not (output.open(name, header) and output.write_image(pixels) and output.close()):
            raise S2VideoError(f"cannot write {Path(name).name} ({output.geterror()}); check that the disk is not full")
        self.num_frames += 1
